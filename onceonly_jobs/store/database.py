"""The two drivers of operations, sync and async, over one Postgres."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from onceonly_jobs import metrics
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.store.line import Line
from onceonly_jobs.store.silence import Breaker, Patience, Watch
from onceonly_jobs.store.statement import Operation, is_autocommit, is_read_only

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

P = ParamSpec("P")
T = TypeVar("T")

DEADLOCK_RETRIES = 5
REFUSAL_S = 0.5
"""How long the news may take that Postgres has given a statement up."""

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


def too_slow(error: BaseException) -> bool:
    """Whether Postgres gave a statement up because it took longer than it may, or because it is a standby's now."""
    return isinstance(error, DBAPIError) and _state(error) in ("57014", "55P03", "25006")


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def unreachable(error: BaseException) -> bool:
    """Whether Postgres could not be asked, or went away while it was."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, sa.exc.TimeoutError)
    state = getattr(error.orig, "sqlstate", None) or ""
    gone = isinstance(error, OperationalError | InterfaceError) and not state
    return gone or error.connection_invalidated or state.startswith(("08", "57P", "53"))


def connecting(url: str) -> tuple[sa.URL, dict[str, Any]]:
    """Where to connect, and how: `?prepare_threshold=none` in the URL is psycopg's own option, not libpq's.

    A pool that gives each transaction another connection, like PgBouncer's, does not know of prepared statements, or
    not of psycopg's: then none may be made.
    """
    given = sa.make_url(url)
    threshold = given.query.get("prepare_threshold")
    if threshold is None:
        return given, {}
    if threshold != "none" and not str(threshold).isdecimal():
        raise ConfigError(f"prepare_threshold in a database's URL: a number or none, not {threshold}")
    number = None if threshold == "none" else int(str(threshold))
    return given.difference_update_query(["prepare_threshold"]), {"prepare_threshold": number}


class Database:
    """Runs operations against one Postgres. Engines are made per process, after a fork, on first use."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        connect_timeout_s: int = 5,
        pool_timeout_s: float = 10,
        statement_timeout_s: float | None = None,
        silence_s: float | None = None,
    ) -> None:
        """statement_timeout_s: of the async driver, which then also gives a silent Postgres up, and leaves it alone
        for a moment. silence_s: how long the other driver waits for an answer, before it takes the connection for lost.
        """
        self._url, how = connecting(url)
        self._statement_timeout_s = statement_timeout_s
        self._breaker = Breaker()
        self._patience = None if silence_s is None else Patience(silence_s)
        self._options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": 0,
            "pool_timeout": pool_timeout_s,
            # An error that is logged must not show what callers sent.
            "hide_parameters": True,
            "connect_args": {"connect_timeout": connect_timeout_s, **CONNECTION, **how},
        }
        self._engine: sa.Engine | None = None
        self._async_engine: AsyncEngine | None = None
        self._lines: list[Line] = []
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
            # It loads SQLAlchemy's ORM too, of which a worker needs nothing.
            from sqlalchemy.ext.asyncio import create_async_engine

            self._async_engine = create_async_engine(self._url, **self._options)
            self._count_use(self._async_engine.sync_engine)
            if self._statement_timeout_s is not None:
                sa.event.listen(self._async_engine.sync_engine, "connect", self._limit_statements)
        return self._async_engine

    def _limit_statements(self, connection: Any, _: object) -> None:
        # Not as a startup parameter: PgBouncer refuses those that it doesn't know.
        with Watch(connection.driver_connection, self._silence_s), connection.cursor() as cursor:
            cursor.execute(self._limiting)
            connection.commit()

    @property
    def _limiting(self) -> str:
        return f"SET statement_timeout = {round((self._statement_timeout_s or 0) * 1000)}"

    @property
    def _silence_s(self) -> float:
        """How long to wait for an answer: as long as Postgres may take, and then for its refusal to arrive."""
        return (self._statement_timeout_s or 0) + REFUSAL_S

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
                with (
                    self.engine.connect().execution_options(**options) as connection,
                    self._watched(connection) as answered,
                    connection.begin(),
                ):
                    return on(connection, operation(*args, **kwargs), answered)
            except DBAPIError as error:
                if attempt == DEADLOCK_RETRIES or not _may_repeat(operation, error, attempt):
                    raise
                time.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")

    def _watched(self, connection: sa.Connection) -> AbstractContextManager[Callable[[], None]]:
        if self._patience is None:
            return nullcontext(lambda: None)
        return self._patience.of(cast(Any, connection.connection.driver_connection))

    async def arun(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run`, without blocking the event loop."""
        return await self._tried(
            operation, lambda: self._attempt(operation(*args, **kwargs), is_autocommit(operation))
        )

    async def arun_along(
        self, line: Line, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`arun`, over this line: for what is asked all the time."""
        return await self._tried(
            operation, lambda: self._along(line, operation(*args, **kwargs), is_autocommit(operation))
        )

    def line(self) -> Line:
        """Another connection, which is no part of the pool."""
        line = Line(self._url, self._options["connect_args"], self._limit_line)
        self._lines.append(line)
        return line

    async def _limit_line(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._statement_timeout_s is not None:
            with Watch(connection, self._silence_s):
                await connection.execute(self._limiting)

    async def _tried(self, operation: Callable[..., Any], ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(DEADLOCK_RETRIES + 1):
            self._breaker.check()
            started = time.monotonic()
            try:
                value = await ask()
            except DBAPIError as error:
                if self._statement_timeout_s is not None and unreachable(error):
                    self._breaker.failed(time.monotonic() - started)
                if attempt == DEADLOCK_RETRIES or not _may_repeat(operation, error, attempt):
                    raise
                await asyncio.sleep(_pause_s(attempt))
            else:
                self._breaker.answered()
                return value
        raise AssertionError("unreachable")

    async def _attempt(self, operation: Operation[T], autocommit: bool) -> T:
        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        async with self.async_engine.connect() as connection:
            await connection.execution_options(**options)
            if self._statement_timeout_s is None:
                async with connection.begin():
                    return await aon(connection, operation)
            raw = await connection.get_raw_connection()
            with Watch(cast(Any, raw.driver_connection), self._silence_s) as watch:
                async with connection.begin():
                    value = await aon(connection, operation, watch.renew)
            if watch.hung_up:
                await connection.invalidate()
            return value

    async def _along(self, line: Line, operation: Operation[T], autocommit: bool) -> T:
        connection = await line.connection()
        with Watch(connection, self._silence_s) as watch:
            async with nullcontext() if autocommit else connection.transaction():
                value = await aon(line, operation, watch.renew)
        if watch.hung_up:
            await line.close()
        return value

    def close(self) -> None:
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
            self._forget_use()
        self._engine = None

    async def aclose(self) -> None:
        if self._async_engine is not None and self._pid == os.getpid():
            await self._async_engine.dispose()
            for line in self._lines:
                await line.close()
            self._forget_use()
        self._async_engine = None
        self.close()


def on(connection: sa.Connection, operation: Operation[T], answered: Callable[[], None] = lambda: None) -> T:
    """The operation's value, inside the connection's current transaction. answered: called after each answer."""
    answer: Any = None
    while True:
        try:
            statement = operation.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value
        answer = statement.read(connection.execute(statement.query, statement.params))
        answered()


async def aon(
    connection: AsyncConnection | Line, operation: Operation[T], answered: Callable[[], None] = lambda: None
) -> T:
    """`on`, for an async connection. answered: called after each answer."""
    answer: Any = None
    while True:
        try:
            statement = operation.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value
        answer = statement.read(cast(Any, await connection.execute(statement.query, statement.params)))
        answered()


def _pause_s(attempt: int) -> float:
    return random.uniform(0, 0.01 * 2**attempt)  # noqa: S311 (jitter, not a secret)
