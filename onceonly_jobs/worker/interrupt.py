"""Stopping a handler that will not stop by itself, and never anything that comes after it."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
"""Nobody else's signal (Celery's soft time limit is SIGUSR1), so our handler for it can stay for good: a
signal on its way when the call ends still finds it, and is dropped there."""


LOOK_S = 0.25


class Reason(Enum):
    """Why a handler has to stop."""

    OVERDUE = auto()
    """its time limit has passed"""
    CANCELLED = auto()
    """somebody cancelled the run"""
    LOST = auto()
    """its claim has expired, or another worker holds the run"""
    STOPPING = auto()
    """its worker ends, and hands the run back"""


class Interrupted(BaseException):
    """Raised inside a handler that has to stop. No `except Exception` catches it, as with CancelledError."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name.lower())
        self.reason = reason


class Interrupt:
    """One handler's call, which another thread may interrupt at most once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reach: Callable[[], None] | None = None
        self._over = False
        self._armed = False
        self.announced: Reason | None = None
        """Why the handler should stop by itself, before it is interrupted."""
        self.reason: Reason | None = None
        """Why it was interrupted."""

    def fire(self, reason: Reason) -> bool:
        """Interrupt the handler. False when it is not running any more, or was interrupted before."""
        with self._lock:
            if self._over or self.reason is not None:
                return False
            self.reason = reason
            if self._reach is not None:
                self._reach()
            return True

    def unless_over(self, action: Callable[[], None]) -> None:
        """Act while the handler is certain to be running still."""
        with self._lock:
            if not self._over:
                action()

    @contextmanager
    def lent(self) -> Iterator[Interrupt]:
        """The interrupt of another run that this handler carries out within itself, in the same thread.

        Until that one is recorded this one is not raised here, but passed on to the other run's handler, which stops
        as if its own claim was lost. Raises Interrupted at the end, where it was fired meanwhile.
        """
        inner = Interrupt()
        with self._lock:
            if self.reason is not None:
                raise Interrupted(self.reason)
            reach, self._reach = self._reach, lambda: _pass_on(inner)
        try:
            yield inner
        finally:
            with self._lock:
                self._reach = reach
            if self._armed:
                signal.signal(SIGNAL, self._on_signal)
        if self.reason is not None:
            raise Interrupted(self.reason)

    def call(self, handler: Callable[[T], Any], argument: T) -> Any:
        """What the handler returns. Raises what it raises, or Interrupted: then and only then was it fired."""
        try:
            try:
                if inspect.iscoroutinefunction(handler):
                    returned = asyncio.run(self._awaited(handler, argument))
                else:
                    returned = self._called(handler, argument)
            finally:
                self._finish()
        except (SystemExit, KeyboardInterrupt):  # this process is to end
            raise
        except BaseException:
            if self.reason is not None:
                raise Interrupted(self.reason) from None
            raise
        if self.reason is not None:  # it came too late, or the handler kept it to itself
            raise Interrupted(self.reason)
        return returned

    def _finish(self) -> None:
        with self._lock:
            self._over = True
            self._reach = None

    def _start(self, reach: Callable[[], None]) -> None:
        with self._lock:
            self._reach = reach
            if self.reason is not None:
                raise Interrupted(self.reason)

    def _called(self, handler: Callable[[T], Any], argument: T) -> Any:
        if threading.current_thread() is threading.main_thread():
            return self._by_signal(handler, argument)
        return self._by_exception(handler, argument)

    def _by_signal(self, handler: Callable[[T], Any], argument: T) -> Any:
        """In the main thread: a signal, whose Python handler runs in this thread between two steps of it."""
        thread = threading.get_ident()
        signal.signal(SIGNAL, self._on_signal)
        self._armed = True
        try:
            self._start(lambda: signal.pthread_kill(thread, SIGNAL))
            return handler(argument)
        finally:
            self._armed = False
            self._finish()
            if self.reason is not None:
                _let_go_of_logs()

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self._armed and self.reason is not None:
            self._armed = False
            raise Interrupted(self.reason)

    def _by_exception(self, handler: Callable[[T], Any], argument: T) -> Any:
        """In any other thread: an exception that the interpreter raises there. Blocking calls end first."""
        thread = ctypes.c_ulong(threading.get_ident())
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        try:
            self._start(lambda: raise_in(thread, ctypes.py_object(_Stopped)))
            return handler(argument)
        finally:
            self._finish()
            raise_in(thread, None)  # one that was set, but not raised yet

    async def _awaited(self, handler: Callable[[T], Any], argument: T) -> Any:
        """A coroutine: its task is cancelled, as asyncio does it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a running coroutine has a task"  # noqa: S101
        self._start(lambda: _cancel(loop, task))
        try:
            return await handler(argument)
        finally:
            self._finish()


def _let_go_of_logs() -> None:
    """Release what a call of logging has locked that was interrupted: before Python 3.13 it locks outside its `try`.

    Every other thread that logs would wait for it without end. The handler's call is over, so nothing of it logs.
    """
    for reference in logging._handlerList:  # type: ignore[attr-defined]
        lock = getattr(reference(), "lock", None)
        while lock is not None and lock._is_owned():
            lock.release()


def _pass_on(inner: Interrupt) -> None:
    inner.fire(Reason.LOST)


class _Stopped(BaseException):
    """What PyThreadState_SetAsyncExc raises: a class, since it takes no instance."""


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    loop.call_soon_threadsafe(task.cancel)


def within(
    time_s: float,
    action: Callable[[], T],
    *,
    told_to_end: Callable[[], bool],
    grace_s: float,
    give_up: Callable[[], None],
) -> T:
    """What the action returns. Raises what it raises, or Interrupted when it took longer, or is told to end.

    give_up: called where it did not stop within `grace_s` after it was interrupted.
    """
    interrupt, over, end_at = Interrupt(), threading.Event(), time.monotonic() + time_s

    def watch() -> None:
        while not over.wait(min(LOOK_S, max(0.0, end_at - time.monotonic()))):
            if told_to_end() or time.monotonic() >= end_at:
                interrupt.fire(Reason.STOPPING if told_to_end() else Reason.OVERDUE)
                if not over.wait(grace_s):
                    give_up()
                return

    threading.Thread(target=watch, name="within", daemon=True).start()
    try:
        result: T = interrupt.call(lambda _: action(), None)
        return result
    finally:
        over.set()
