"""Messages that a broker delivers again, or loses with the worker that had taken them in advance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.process_nodes import Process
from support.worker_system import System

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("beat")]

AN_HOUR_S = "3600"


@contextmanager
def running(parts: System, *options: str, **env: str) -> Iterator[Process]:
    """A worker that is configured as none should be."""
    words = ("-m", "onceonly_jobs.cli.main", "worker", "--app", "support.redelivering_app", *options)
    process = parts.started_as("redelivering", *words, REDELIVERING_FILE=str(deliveries(parts)), **env)
    process.start()
    process.ready()
    try:
        yield process
    finally:
        process.teardown()


def deliveries(parts: System) -> Path:
    return parts.directory / "deliveries"


@pytest.mark.parametrize("whose", ["its own", "another application's"])
def test_a_run_longer_than_the_visibility_timeout_is_done_once(
    parts: System, tmp_path: Path, whose: str
) -> None:
    """Its message is not acknowledged before it ends, so whoever's timeout passes delivers it again."""
    done = tmp_path / "done"
    own = "1" if whose == "its own" else AN_HOUR_S
    late = {"REDELIVERING_LATE": "1"}
    with running(parts, "--concurrency", "2", REDELIVERING_TIMEOUT_S=own, **late):
        enqueued = parts.enqueue("waits_first", "k", witness=str(parts.witness("k")), file=str(done))
        parts.until(lambda: parts.starts("k") == 1, "first start")
        time.sleep(1.1)  # kombu looks when it begins, and then not before long: it must be overdue by now
        with running(parts, "--concurrency", "1", REDELIVERING_TIMEOUT_S="1", **late):

            def delivered_again() -> bool:
                return len(deliveries(parts).read_text().splitlines()) > 1

            parts.until(delivered_again, "a second delivery")
            assert parts.row("k")["publications"] == 0, f"nobody has published {enqueued} again"
            done.touch()
            row = parts.finished("k")
    assert (row["state"], row["attempt"], row["result"]) == ("completed", 1, {"attempt": 1})
    assert parts.starts("k") == 1
    assert parts.events("k") == ["run_queued", "run_started", "run_finished"]


def test_what_a_killed_worker_had_taken_in_advance_is_done_once(parts: System) -> None:
    keys = [f"k{number}" for number in range(12)]
    settings = {"REDELIVERING_PREFETCH": "4", "REDELIVERING_TIMEOUT_S": AN_HOUR_S}
    with running(parts, "--concurrency", "1", **settings) as worker:
        for key in keys:
            parts.enqueue("effect", key, witness=str(parts.witness(key)), sleep_s=0.2)
        parts.until(lambda: sum(map(parts.starts, keys)) > 1, "two starts")
        worker.kill()
    with running(parts, "--concurrency", "2", **settings):
        rows = [parts.finished(key) for key in keys]
    assert {row["state"] for row in rows} == {"completed"}
    again = [row["key"] for row in rows if row["attempt"] > 1]
    assert len(again) <= 1, "only what it was executing is started twice"
    assert all(parts.starts(key) == (2 if key in again else 1) for key in keys)
