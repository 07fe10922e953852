"""Workers whose database goes away and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pytest_celery import CeleryTestSetup
from support.worker_system import System

from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.local.postgres import EmbeddedPostgres
from onceonly_jobs.local.processes import family
from onceonly_jobs.store.migrations import upgrade

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, to be killed."""
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        upgrade(sqlalchemy_url(server.owner_url), sqlalchemy_url(server.app_url))
        yield server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> str:
    return sqlalchemy_url(postgres.app_url)


@pytest.fixture
def extra_env() -> dict[str, str]:
    """A lease that outlasts the outage."""
    return {"ONCEONLY_WORKER_LEASE_S": "60", "ONCEONLY_DRAIN_S": "1"}


def test_a_result_waits_for_the_database(
    celery_setup: CeleryTestSetup, parts: System, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The handler ends while there is no database: its result is stored as soon as there is one."""
    finish = tmp_path / "finish"
    parts.enqueue("waits_first", "k", witness=str(parts.witness("k")), file=str(finish))
    parts.until(lambda: parts.starts("k") == 1, "a start")
    postgres.kill()
    finish.touch()
    parts.until(lambda: "the database is away" in parts.all_logs(), "an attempt to store the result")
    postgres.start()
    row = parts.until_reachable(lambda: parts.finished("k"))
    assert (row["state"], row["result"]) == ("completed", {"attempt": 1})
    assert parts.starts("k") == 1

    parts.until_reachable(lambda: parts.enqueue("effect", "after"))
    assert parts.finished("after")["state"] == "completed"

    # A server that is there and says nothing: no error, no end of the connection, for as long as it lasts.
    melted = tmp_path / "melted"
    parts.enqueue("waits_first", "frozen", witness=str(parts.witness("frozen")), file=str(melted))
    parts.until(lambda: parts.starts("frozen") == 1, "a start")
    with frozen(parts):
        melted.touch()
        parts.until(lambda: (tmp_path / "melted.seen").exists(), "the handler's end")
    row = parts.finished("frozen")
    assert (row["state"], row["result"]) == ("completed", {"attempt": 1})
    assert parts.starts("frozen") == 1

    # A worker that is to end does not wait for it any longer than for its handlers.
    left = tmp_path / "left"
    parts.enqueue("waits_first", "left", witness=str(parts.witness("left")), file=str(left))
    parts.until(lambda: parts.starts("left") == 1, "a start")
    postgres.kill()
    left.touch()
    for worker in celery_setup.worker_cluster:
        worker.container.signal_main("SIGTERM")
    for worker in celery_setup.worker_cluster:
        assert worker.container.wait() == 0
    postgres.start()


@contextmanager
def frozen(parts: System) -> Iterator[None]:
    """Meanwhile, no process of Postgres does anything."""
    [backend] = parts.rows("SELECT pg_backend_pid() AS pid")
    processes = family(psutil.Process(backend["pid"]).ppid())
    assert len(processes) > 5
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()
