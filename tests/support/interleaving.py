"""Real sessions of one Postgres, stepped statement by statement through every order.

A step is one statement, or one commit. Also what is sent in autocommit is committed in a step of its own, unless it
has changed and locked nothing: between the two, others run into its locks, and read what was before. A session that
waits for a lock is left waiting while the others go on, so no order is one that Postgres would not allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from onceonly_jobs.errors import Refusal
from onceonly_jobs.store.database import lost_race
from onceonly_jobs.store.statement import Operation, Statement, is_autocommit

GLANCE_S = 0.002
"""How long a step may take before Postgres is asked whether it waits for a lock."""
WAITS = sa.text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")
CHANGED_NOTHING = sa.text("SELECT pg_current_xact_id_if_assigned() IS NULL")


@dataclass(frozen=True)
class Call:
    """An operation and its arguments, for a session of its own."""

    name: str
    operation: Callable[..., Operation[Any]]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


class Session:
    """One call, under way in one connection. Its outcome is the operation's value, or its refusal."""

    def __init__(self, connection: sa.Connection, call: Call) -> None:
        self.call = call
        self.outcome: Any = None
        self.waited = False
        self.restarts = 0
        self.running: Future[None] | None = None
        self._connection = connection
        self._uncommitted = False
        self._begin()

    def _begin(self) -> None:
        self._next: Statement[Any] | None = None
        self._operation = self.call.operation(*self.call.args, **self.call.options)
        self._ask(None)

    def _ask(self, answer: Any) -> None:
        try:
            self._next = self._operation.send(answer)
        except StopIteration as done:
            self._next, self.outcome = None, done.value
        except Refusal as refusal:
            self._next, self.outcome = None, refusal

    @property
    def ended(self) -> bool:
        return self._next is None and not self._uncommitted

    @property
    def commits_next(self) -> bool:
        return self._uncommitted and (self._next is None or is_autocommit(self.call.operation))

    @property
    def doing(self) -> str:
        return (
            f"{self.call.name}: {'commit' if self.commits_next else self._next.name if self._next else 'end'}"
        )

    def step(self) -> None:
        """Send the next statement, or commit. One that lost a race begins again, as `Database.run` lets it."""
        try:
            if self.commits_next:
                self._connection.commit()
                self._uncommitted = False
            elif self._next is not None:
                statement = self._next
                answer = statement.read(self._connection.execute(statement.query, statement.params))
                self._uncommitted = True
                self._ask(answer)
                if self.commits_next and self._connection.execute(CHANGED_NOTHING).scalar_one():
                    self._connection.commit()
                    self._uncommitted = False
        except DBAPIError as error:
            self._connection.rollback()
            self._uncommitted = False
            if not lost_race(error):
                raise
            self.restarts += 1
            self._begin()


@dataclass
class Explored:
    """What was gone through."""

    orders: int = 0
    waits: int = 0
    restarts: int = 0


Case = tuple[Sequence[Call], Callable[[list[Any]], None]]
"""Calls to run at once, and what must hold of their outcomes and the database in the end."""


class Explorer:
    """As many connections as sessions, one to watch them, and the orders they were stepped in."""

    def __init__(
        self, connections: list[sa.Connection], watcher: sa.Connection, pool: ThreadPoolExecutor
    ) -> None:
        self._connections = connections
        self._pids = [connection.connection.dbapi_connection.info.backend_pid for connection in connections]  # type: ignore[union-attr]
        self._watcher = watcher
        self._pool = pool

    def every_order(self, make: Callable[[int], Case]) -> Explored:
        """Run the case once for each order of its steps. make(n) gives it anew, over fresh keys."""
        explored = Explored()
        chosen: list[int] = []
        while True:
            calls, check = make(explored.orders)
            sessions = [Session(c, call) for c, call in zip(self._connections, calls, strict=False)]
            choices, trace = self._run(sessions, chosen)
            explored.orders += 1
            explored.waits += sum(session.waited for session in sessions)
            explored.restarts += sum(session.restarts for session in sessions)
            try:
                check([session.outcome for session in sessions])
            except AssertionError as error:
                raise AssertionError("\n".join([str(error), "in this order:", *trace])) from error
            while choices and choices[-1][0] + 1 == choices[-1][1]:
                choices.pop()
            if not choices:
                return explored
            chosen = [choice for choice, _ in choices]
            chosen[-1] += 1

    def _run(self, sessions: list[Session], chosen: list[int]) -> tuple[list[tuple[int, int]], list[str]]:
        choices: list[tuple[int, int]] = []
        trace: list[str] = []
        while not all(session.ended for session in sessions):
            able = [session for session in sessions if session.running is None and not session.ended]
            if able:
                choice = chosen[len(choices)] if len(choices) < len(chosen) else 0
                assert choice < len(able), f"not the order of before: {trace}"
                choices.append((choice, len(able)))
                session = able[choice]
                trace.append(session.doing)
                session.running = self._pool.submit(session.step)
            else:  # each waits for another: Postgres ends that
                wait([s.running for s in sessions if s.running], return_when="FIRST_COMPLETED")
            self._settle(sessions, trace)
        return choices, trace

    def _settle(self, sessions: list[Session], trace: list[str]) -> None:
        """Until every session has done its step or waits for another's lock."""
        moving = True
        while moving:
            moving = False
            for session, pid in zip(sessions, self._pids, strict=False):
                if session.running is None:
                    continue
                if self._still(session.running, pid):
                    if not session.waited:
                        trace.append(f"{session.call.name} waits")
                    session.waited = True
                else:
                    session.running.result()
                    session.running = None
                    moving = True

    def _still(self, running: Future[None], pid: int) -> bool:
        """Whether the session waits for a lock, and has not done its step."""
        while True:
            wait([running], GLANCE_S)
            if running.done():
                return False
            if self._watcher.execute(WAITS, {"pid": pid}).scalar_one():
                return not running.done()


@contextmanager
def explorer(owner_url: str, sessions: int) -> Iterator[Explorer]:
    """owner_url is a superuser's, so that deadlocks can be noticed soon."""
    engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(sessions)]
        for connection in connections:
            connection.exec_driver_sql("SET deadlock_timeout = '20ms'")
            connection.commit()
        watcher = stack.enter_context(engine.connect()).execution_options(isolation_level="AUTOCOMMIT")
        yield Explorer(connections, watcher, stack.enter_context(ThreadPoolExecutor(sessions)))
