"""`python -m support.failing api|worker|...`: a part of ours that kills itself where a test says so.

A point is a file in the directory ONCEONLY_TEST_POINTS, like `api before calls.judge`, `worker after claims.complete`
or `api committed calls.judge`. The process that gets there takes the file away and dies: each point kills once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onceonly_jobs.cli.main import main
from onceonly_jobs.store import database
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.statement import Operation
from onceonly_jobs.worker import tool_call

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


def _committed() -> None:
    for name in _asked.get():
        _pass(f"committed {name}")


def _install() -> None:
    run, arun, on, aon, post = Database.run, Database.arun, database.on, database.aon, tool_call.post

    def watched_run(self: Database, *args: Any, **kwargs: Any) -> Any:
        _asked.set(())
        value = run(self, *args, **kwargs)
        _committed()
        return value

    async def watched_arun(self: Database, *args: Any, **kwargs: Any) -> Any:
        _asked.set(())
        value = await arun(self, *args, **kwargs)
        _committed()
        return value

    def watched_post(*args: Any, **kwargs: Any) -> Any:
        _pass("before the request")
        answer = post(*args, **kwargs)
        _pass("after the request")
        return answer

    changed: list[tuple[Any, str, Callable[..., Any]]] = [
        (Database, "run", watched_run),
        (Database, "arun", watched_arun),
        (database, "on", lambda connection, operation: on(connection, _watched(operation))),
        (database, "aon", lambda connection, operation: aon(connection, _watched(operation))),
        (tool_call, "post", watched_post),
    ]
    for place, name, watched in changed:
        setattr(place, name, watched)


if __name__ == "__main__":
    _install()
    main()
