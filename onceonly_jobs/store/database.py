"""The two drivers of operations, sync and async, over one Postgres."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from onceonly_jobs import metrics
from onceonly_jobs.store.statement import Operation, is_autocommit, is_read_only

P = ParamSpec("P")
T = TypeVar("T")

DEADLOCK_RETRIES = 5

CONNECTION = {
    "application_name": "onceonly-jobs",
    # A Postgres that is silently gone is noticed in seconds: a heartbeat must not hang longer than its lease.
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_RETRYABLE_STATES = {"40001", "40P01"}
"""serialization_failure and deadlock_detected: the transaction was rolled back whole, so starting over is safe."""


def lost_race(error: DBAPIError) -> bool:
    """Whether Postgres rolled the transaction back for concurrency's sake alone."""
    return getattr(error.orig, "sqlstate", None) in _RETRYABLE_STATES


def _may_repeat(operation: Callable[..., Any], error: DBAPIError, attempt: int) -> bool:
    """Whether asking again is safe. A pooled connection may have died unnoticed: once, on a fresh one."""
    return lost_race(error) or (attempt == 0 and is_read_only(operation) and unreachable(error))


def refused_value(error: DBAPIError) -> bool:
    """Whether Postgres can't keep a value that it was given, and never will."""
    return _state(error)[:2] in ("22", "54")


def may_pass(error: BaseException) -> bool:
    """Whether Postgres failed for a reason of the moment: locks, time-outs, a standby, its disk."""
    return isinstance(error, DBAPIError) and _state(error)[:2] in ("25", "40", "53", "55", "57", "58", "XX")


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def unreachable(error: BaseException) -> bool:
    """Whether Postgres could not be asked, or went away while it was."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, sa.exc.TimeoutError)
    state = getattr(error.orig, "sqlstate", None) or ""
    gone = isinstance(error, OperationalError | InterfaceError) and not state
    return gone or error.connection_invalidated or state.startswith(("08", "57P", "53"))


class Database:
    """Runs operations against one Postgres. Engines are made per process, after a fork, on first use."""

    def __init__(self, url: str, *, pool_size: int = 5, connect_timeout_s: int = 5) -> None:
        self._url = url
        self._options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": 0,
            "pool_timeout": 10,
            # An error that is logged must not show what callers sent.
            "hide_parameters": True,
            "connect_args": {"connect_timeout": connect_timeout_s, **CONNECTION},
        }
        self._engine: sa.Engine | None = None
        self._async_engine: AsyncEngine | None = None
        self._pid = os.getpid()

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():
            if self._engine is not None:
                self._engine.dispose(close=False)
            self._engine = self._async_engine = None
            self._pid = os.getpid()

    @property
    def engine(self) -> sa.Engine:
        self._forget_after_fork()
        if self._engine is None:
            self._engine = sa.create_engine(self._url, **self._options)
            self._count_use(self._engine)
        return self._engine

    @property
    def async_engine(self) -> AsyncEngine:
        self._forget_after_fork()
        if self._async_engine is None:
            self._async_engine = create_async_engine(self._url, **self._options)
            self._count_use(self._async_engine.sync_engine)
        return self._async_engine

    def _count_use(self, engine: sa.Engine) -> None:
        used = partial(metrics.count, metrics.DATABASE_CONNECTIONS, "in_use")
        metrics.count(metrics.DATABASE_CONNECTIONS, "limit", by=self._options["pool_size"])
        sa.event.listen(engine, "checkout", lambda *_: used())
        sa.event.listen(engine, "checkin", lambda *_: used(by=-1))

    def _forget_use(self) -> None:
        metrics.count(metrics.DATABASE_CONNECTIONS, "limit", by=-self._options["pool_size"])

    def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The operation's value, in a transaction of its own. A deadlock starts it afresh."""
        options = {"isolation_level": "AUTOCOMMIT"} if is_autocommit(operation) else {}
        for attempt in range(DEADLOCK_RETRIES + 1):
            try:
                with self.engine.connect().execution_options(**options) as connection, connection.begin():
                    return on(connection, operation(*args, **kwargs))
            except DBAPIError as error:
                if attempt == DEADLOCK_RETRIES or not _may_repeat(operation, error, attempt):
                    raise
                time.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")

    async def arun(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run`, without blocking the event loop."""
        options = {"isolation_level": "AUTOCOMMIT"} if is_autocommit(operation) else {}
        for attempt in range(DEADLOCK_RETRIES + 1):
            try:
                async with self.async_engine.connect() as connection:
                    await connection.execution_options(**options)
                    async with connection.begin():
                        return await aon(connection, operation(*args, **kwargs))
            except DBAPIError as error:
                if attempt == DEADLOCK_RETRIES or not _may_repeat(operation, error, attempt):
                    raise
                await asyncio.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
            self._forget_use()
        self._engine = None

    async def aclose(self) -> None:
        if self._async_engine is not None and self._pid == os.getpid():
            await self._async_engine.dispose()
            self._forget_use()
        self._async_engine = None
        self.close()


def on(connection: sa.Connection, operation: Operation[T]) -> T:
    """The operation's value, inside the connection's current transaction."""
    answer: Any = None
    while True:
        try:
            statement = operation.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value
        answer = statement.read(connection.execute(statement.query, statement.params))


async def aon(connection: AsyncConnection, operation: Operation[T]) -> T:
    """`on`, for an async connection."""
    answer: Any = None
    while True:
        try:
            statement = operation.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value
        answer = statement.read(await connection.execute(statement.query, statement.params))


def _pause_s(attempt: int) -> float:
    return random.uniform(0, 0.01 * 2**attempt)  # noqa: S311 (jitter, not a secret)
