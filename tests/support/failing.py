"""`python -m support.failing api|worker|...`: a part of ours that kills itself where a test says so.

A point is a file in the directory ONCEONLY_TEST_POINTS, like `api before calls.judge`, `worker after claims.complete`
or `api committed calls.judge`; `found` is `after` an answer that has something in it. The process that gets there
takes the file away and dies: each point kills once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onceonly_jobs.cli.main import main
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.store import database
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.statement import Operation
from onceonly_jobs.worker import tool_call
from onceonly_jobs.worker.interrupt import Interrupt

POINTS = Path(os.environ["ONCEONLY_TEST_POINTS"])
PART = sys.argv[1]
_asked: ContextVar[tuple[str, ...]] = ContextVar("asked", default=())
"""The statements of the transaction so far."""


def _pass(point: str) -> None:
    try:
        (POINTS / f"{PART} {point}").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _watched(operation: Operation[Any]) -> Operation[Any]:
    answer: Any = None
    while True:
        try:
            statement = operation.send(answer)
        except StopIteration as done:
            return done.value
        _pass(f"before {statement.name}")
        answer = yield statement
        _asked.set((*_asked.get(), statement.name))
        _pass(f"after {statement.name}")
        if answer:
            _pass(f"found {statement.name}")


def _committed() -> None:
    for name in _asked.get():
        _pass(f"committed {name}")


def _install() -> None:
    run, on, aon, post = Database.run, database.on, database.aon, tool_call.post
    publish, call = Publisher.publish, Interrupt.call

    def watched_run(self: Database, *args: Any, **kwargs: Any) -> Any:
        _asked.set(())
        value = run(self, *args, **kwargs)
        _committed()
        return value

    def watching(ask: Callable[..., Any]) -> Callable[..., Any]:
        async def watched(self: Database, *args: Any, **kwargs: Any) -> Any:
            _asked.set(())
            value = await ask(self, *args, **kwargs)
            _committed()
            return value

        return watched

    def watched_post(*args: Any, **kwargs: Any) -> Any:
        _pass("before the request")
        answer = post(*args, **kwargs)
        _pass("after the request")
        return answer

    def watched_publish(self: Publisher, due: Iterable[Any]) -> int:
        batch = list(due)
        if batch:
            _pass("before publishing")
        count = publish(self, batch)
        if batch:
            _pass("after publishing")
        return count

    def watched_call(self: Interrupt, *args: Any) -> Any:
        _pass("before the handler")
        returned = call(self, *args)
        _pass("after the handler")
        return returned

    changed: list[tuple[Any, str, Callable[..., Any]]] = [
        (Database, "run", watched_run),
        (Database, "arun", watching(Database.arun)),
        (Database, "arun_along", watching(Database.arun_along)),
        (database, "on", lambda connection, operation, *rest: on(connection, _watched(operation), *rest)),
        (database, "aon", lambda connection, operation, *rest: aon(connection, _watched(operation), *rest)),
        (tool_call, "post", watched_post),
        (Publisher, "publish", watched_publish),
        (Interrupt, "call", watched_call),
    ]
    for place, name, watched in changed:
        setattr(place, name, watched)


if __name__ == "__main__":
    _install()
    main()
