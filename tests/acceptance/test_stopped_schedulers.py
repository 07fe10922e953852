"""A scheduler or a relay that is told to end does, wherever the signal finds it."""

from __future__ import annotations

import signal
import time

import pytest
from support.worker_system import System

WAITING = "SELECT 1 FROM pg_locks WHERE relation = 'runs'::regclass AND NOT granted"


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_that_comes_during_a_destructor_ends_a_scheduler(parts: System, number: str) -> None:
    """Raised there, the exception by which Celery ends its own would be lost, and the scheduler would go on."""
    beat = parts.started_as(
        "beat", "-m", "onceonly_jobs.cli.main", "beat", "--app", "support.signalled_app", SIGNALLED_BY=number
    )
    beat.start()
    try:
        assert beat.wait() == 0, beat.logs()
        assert "Exception ignored" not in beat.logs()
    finally:
        beat.teardown()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_relay(parts: System, number: str) -> None:
    relay = parts.process("relay")
    relay.start()
    try:
        relay.ready()
        relay.signal_main(number)
        assert relay.wait() == 0, relay.logs()
    finally:
        relay.teardown()


@pytest.mark.parametrize("kind", ["beat", "relay"])
def test_a_second_signal_ends_one_that_waits_for_the_database(parts: System, kind: str) -> None:
    process = parts.process(kind)
    process.start()
    try:
        process.ready()
        with parts.db.engine.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE runs")
            parts.until(lambda: parts.rows(WAITING), "it waits for the table")
            process.signal_main("SIGTERM")
            time.sleep(0.5)
            assert process.status == "running"
            while process.status == "running":
                process.signal_main("SIGTERM")
                time.sleep(0.05)
            assert process.wait() == -signal.SIGTERM
    finally:
        process.teardown()
