"""Workers, a relay, a broker and a database of a test's own, and what a test asks of them."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from support.process_nodes import PATIENCE_S, Process

from onceonly_jobs.config import Settings
from onceonly_jobs.jobs import Enqueued, Jobs
from onceonly_jobs.store.database import Database

T = TypeVar("T")

QUICK = {
    "ONCEONLY_WORKER_LEASE_S": "3",
    "ONCEONLY_WORKER_HEARTBEAT_S": "0.5",
    "ONCEONLY_TIME_LIMIT_GRACE_S": "1",
    "ONCEONLY_RELAY_INTERVAL_S": "0.25",
    "ONCEONLY_PUBLISH_GRACE_S": "0.5",
    # On a busy machine nobody is refused for its slowness.
    "ONCEONLY_API_POOL_TIMEOUT_S": "60",
    "ONCEONLY_API_STATEMENT_TIMEOUT_S": "60",
}
"""Everything soon, so that tests need not wait long for what happens by itself."""

LONG = {"ONCEONLY_WORKER_LEASE_S": "600", "ONCEONLY_WORKER_HEARTBEAT_S": "60"}
"""Leases of which no test sees the end: whatever happens does so without it."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class System:
    """A deployment of processes, and its database."""

    settings: Settings
    db: Database
    jobs: Jobs
    directory: Path
    extra_env: dict[str, str]

    def process(self, kind: str, *options: str, **env: str) -> Process:
        """A part of the system, not yet started: `worker`, `beat` or `relay`."""
        app = ["--app", "support.worker_app"] if kind != "relay" else []
        return self.started_as(kind, "-m", "onceonly_jobs.cli.main", kind, *app, *options, **env)

    def started_as(self, name: str, *python: str, **env: str) -> Process:
        """A part of the system, not yet started, by the arguments of Python."""
        broker_url = self.settings.require_broker_url()
        given = {
            "ONCEONLY_DATABASE_URL": self.settings.require_database_url(),
            "ONCEONLY_BROKER_URL": broker_url,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **QUICK,
            **self.extra_env,
            **env,
        }
        argv = [sys.executable, *python]
        return Process(f"{name}{next(_numbers)}", argv, given, self.directory, broker_url)

    def enqueue(self, job: str, key: str, **payload: Any) -> Enqueued:
        return self.jobs.enqueue(job, key=key, payload=payload)

    def witness(self, key: str) -> Path:
        """The file in which starts of that key's handler leave their lines."""
        return self.directory / f"{key.replace('/', '_')}.witness"

    def starts(self, key: str) -> int:
        path = self.witness(key)
        return len(path.read_text().splitlines()) if path.exists() else 0

    def rows(self, query: str, **params: Any) -> list[dict[str, Any]]:
        with self.db.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(query), params).mappings()]

    def row(self, key: str) -> dict[str, Any]:
        """The run under a key, as stored."""
        (row,) = self.rows("SELECT * FROM runs WHERE key = :key", key=key)
        return row

    def events(self, key: str) -> list[str]:
        """The types on the timeline of the run under a key."""
        query = "SELECT type FROM run_events WHERE run_id = :key ORDER BY id"
        return [row["type"] for row in self.rows(query, key=key)]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first truthy value of the condition."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}\n{self.all_logs()}")
            time.sleep(0.05)

    def until_reachable(self, ask: Callable[[], T]) -> T:
        """What the database answers once it is back."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except DBAPIError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def all_logs(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs)

    def state(self, key: str, *states: str) -> dict[str, Any]:
        """The row of a run once it is in one of these states."""

        def reached() -> dict[str, Any] | None:
            row = self.row(key)
            return row if row["state"] in states else None

        reached_row: dict[str, Any] = self.until(reached, f"{key} {' or '.join(states)}")
        return reached_row

    def finished(self, key: str) -> dict[str, Any]:
        return self.state(key, "completed", "failed", "cancelled")


@contextmanager
def system_over(database_url: str, broker_url: str, directory: Path, **extra_env: str) -> Iterator[System]:
    """The parts' environment, with a client of the same database. Starts nothing."""
    settings = Settings.load(database_url=database_url, broker_url=broker_url)
    db = Database(settings.require_database_url(), pool_size=5)
    jobs = Jobs(settings, tenant="t")
    try:
        yield System(settings, db, jobs, directory, extra_env)
    finally:
        jobs.close()
        db.close()
