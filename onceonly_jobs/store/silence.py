"""A database that does not answer: given up on in time, and left alone for a moment."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import psycopg
import sqlalchemy as sa

SLOW_S = 1.0
"""A failure that took this long cost its caller time; sooner ones cost nobody anything."""
REST_S = 1.0


class Watch:
    """Hangs up on a database that has not answered for `limit_s`; as a context manager, around what asks it.

    Whoever waits for the answer then gets the error of a connection that was lost. Needs a running event loop.
    """

    def __init__(self, connection: psycopg.AsyncConnection[object], limit_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self.hung_up = False

    def __enter__(self) -> Watch:
        self.renew()
        self._timer = self._loop.call_later(self._limit_s, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def renew(self) -> None:
        """It has answered: the next answer has all of the time again."""
        self._ends_at = self._loop.time() + self._limit_s

    def _look(self) -> None:
        left = self._ends_at - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.hung_up = True
            hang_up(self._connection)


class Patience:
    """`Watch` for threads: hangs up on a database that has not answered one of them for `limit_s`.

    Something between that takes what is sent, and loses the other side, keeps every time-out of TCP from ending it.
    There are no locks: a fork may come at any time, and so may an interrupt.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._asked: dict[object, tuple[float, psycopg.Connection[Any]]] = {}
        self._pid = 0

    @contextmanager
    def of(self, connection: psycopg.Connection[Any]) -> Iterator[Callable[[], None]]:
        """Around what asks. What it gives is called after each answer: the next has all of the time again."""
        if self._pid != os.getpid():
            self._pid, self._asked = os.getpid(), {}
            threading.Thread(target=self._look, name="patience", daemon=True).start()
        mark = object()

        def renew() -> None:
            self._asked[mark] = (time.monotonic() + self._limit_s, connection)

        renew()
        try:
            yield renew
        finally:
            self._asked.pop(mark, None)

    def _look(self) -> None:
        while True:
            time.sleep(self._limit_s / 8)
            now = time.monotonic()
            for mark, (ends_at, connection) in list(self._asked.items()):
                if now >= ends_at and self._asked.pop(mark, None) is not None:
                    hang_up(connection)


def hang_up(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """End both ways of a connection's socket, which stays open: its number must not be given to another one yet."""
    try:
        line = socket.socket(fileno=os.dup(connection.fileno()))
    except (psycopg.Error, OSError):
        return  # closed meanwhile
    with line:
        try:
            line.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was first


class Breaker:
    """After a failure that took long, refuses at once for a moment; then one caller at a time finds out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ask_again_at: float | None = None

    def check(self) -> None:
        """Raises sqlalchemy's TimeoutError where asking would only wait."""
        if self._ask_again_at is None:
            return
        now = self._clock()
        if now < self._ask_again_at:
            raise sa.exc.TimeoutError("not asked: it did not answer a moment ago")
        self._ask_again_at = now + REST_S

    def failed(self, took_s: float) -> None:
        if took_s >= SLOW_S:
            self._ask_again_at = self._clock() + REST_S

    def answered(self) -> None:
        self._ask_again_at = None
