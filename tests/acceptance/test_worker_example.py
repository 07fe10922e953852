"""The example deployment in `workers/`, started with Celery's own command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.process_nodes import Process
from support.worker_system import System

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def started(parts: System) -> Iterator[list[Process]]:
    """`celery -A workers.app worker`, `celery -A workers.app beat`, and a relay alone."""
    processes = [
        parts.started_as("worker", "-m", "celery", "-A", "workers.app", "worker", "--concurrency", "1"),
        parts.started_as("beat", "-m", "celery", "-A", "workers.app", "beat"),
        parts.process("relay"),
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.ready()
    yield processes
    for process in processes:
        process.teardown()


def test_celery_users_find_their_commands(parts: System, started: list[Process]) -> None:
    parts.enqueue("word_count", "words", text="to be or not to be")
    assert parts.finished("words")["result"] == {"words": 6, "distinct": 4}

    parts.enqueue("daily_report", "report:daily:2026-03-01")
    row = parts.finished("report:daily:2026-03-01")
    assert row["result"]["day"] == "2026-03-01"
    events = parts.events("report:daily:2026-03-01")
    assert (events.count("progress"), events.count("log")) == (3, 1)

    parts.jobs.enqueue("echo", key="built in", metadata={"n": 1})
    assert parts.finished("built in")["result"]["metadata"] == {"n": 1}

    specs = {row["name"]: row["match"] for row in parts.rows("SELECT name, match FROM jobs")}
    assert specs["daily_report"] == "report:daily:*"
    assert specs.keys() >= {"word_count", "echo", "chat", "http_request", "daily_summary"}


def test_every_part_ends_when_it_is_told_to(started: list[Process]) -> None:
    for process in started:
        process.signal_main("SIGTERM")
    assert [process.wait() for process in started] == [0, 0, 0]
