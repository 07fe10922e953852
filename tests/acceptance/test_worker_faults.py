"""Workers, relay and broker that die, hang and come back: each run is done once, and none is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis
from pytest_celery import CeleryTestSetup, CeleryTestWorker
from support.process_nodes import Process
from support.worker_system import System

pytestmark = pytest.mark.timeout(240)

RETRIED = ["run_queued", "run_started", "lease_expired", "run_retried", "run_started", "run_finished"]


def holder(parts: System, setup: CeleryTestSetup, key: str) -> CeleryTestWorker:
    """The worker whose process started this key's handler last."""
    pid = int(parts.witness(key).read_text().split()[-1])
    group = os.getpgid(pid)
    (worker,) = [worker for worker in setup.worker_cluster if worker.container.pid == group]
    return worker


def test_another_worker_finishes_what_a_killed_one_held(celery_setup: CeleryTestSetup, parts: System) -> None:
    parts.enqueue("slow_first", "k", witness=str(parts.witness("k")))
    parts.until(lambda: parts.starts("k") == 1, "first start")
    holder(parts, celery_setup, "k").kill()
    row = parts.finished("k")
    assert (row["state"], row["result"], row["attempt"]) == ("completed", {"attempt": 2}, 2)
    assert parts.starts("k") == 2
    assert parts.events("k") == RETRIED


def test_a_frozen_worker_comes_back_too_late(
    celery_setup: CeleryTestSetup, parts: System, tmp_path: Path
) -> None:
    """The zombie returns a result of its own after another worker has finished: refused, and recorded."""
    thawed = tmp_path / "thawed"
    parts.enqueue("waits_first", "k", witness=str(parts.witness("k")), file=str(thawed))
    parts.until(lambda: parts.starts("k") == 1, "first start")
    zombie = holder(parts, celery_setup, "k")
    zombie.kill(signal="SIGSTOP")
    row = parts.finished("k")
    assert (row["state"], row["result"], row["attempt"]) == ("completed", {"attempt": 2}, 2)

    thawed.touch()
    zombie.kill(signal="SIGCONT")
    parts.until(lambda: parts.events("k")[-1] == "stale_write_refused", "the refusal's trace")
    assert parts.events("k") == [*RETRIED, "stale_write_refused"]
    assert parts.row("k")["result"] == {"attempt": 2}

    parts.enqueue("effect", "after")
    assert parts.finished("after")["state"] == "completed"


def test_a_wiped_redis_loses_nothing(celery_setup: CeleryTestSetup, parts: System) -> None:
    keys = [f"k{n}" for n in range(150)]
    with redis.Redis.from_url(parts.settings.require_broker_url()) as broker:
        for number, key in enumerate(keys):
            parts.enqueue("effect", key, witness=str(parts.witness(key)), sleep_s=0.02)
            if number % 30 == 0:
                broker.flushall()
        broker.flushall()
    for key in keys:
        assert parts.finished(key)["state"] == "completed"
        assert parts.starts(key) == 1


def test_a_restarted_redis_loses_nothing(celery_setup: CeleryTestSetup, parts: System) -> None:
    keys = [f"k{n}" for n in range(60)]
    for key in keys[:30]:
        parts.enqueue("effect", key, witness=str(parts.witness(key)), sleep_s=0.05)
    celery_setup.broker.kill()
    for key in keys[30:]:
        parts.enqueue("effect", key, witness=str(parts.witness(key)))
    celery_setup.broker.restart()
    for key in keys:
        assert parts.finished(key)["state"] == "completed"
        assert parts.starts(key) == 1


def test_a_worker_that_stops_in_order_finishes_what_it_runs(
    celery_setup: CeleryTestSetup, parts: System
) -> None:
    parts.enqueue("effect", "k", witness=str(parts.witness("k")), sleep_s=2)
    parts.until(lambda: parts.starts("k") == 1, "first start")
    worker = holder(parts, celery_setup, "k").container
    worker.signal_main("SIGTERM")
    assert worker.wait() == 0
    assert (parts.row("k")["state"], parts.row("k")["attempt"]) == ("completed", 1)


def test_a_worker_that_stops_at_once_hands_its_run_back(celery_setup: CeleryTestSetup, parts: System) -> None:
    """Without waiting for the claim to expire."""
    parts.enqueue("slow_first", "k", witness=str(parts.witness("k")))
    parts.until(lambda: parts.starts("k") == 1, "first start")
    worker = holder(parts, celery_setup, "k").container
    worker.signal_main("SIGQUIT")
    row = parts.finished("k")
    assert (row["state"], row["attempt"]) == ("completed", 2)
    (retried,) = parts.rows("SELECT message FROM run_events WHERE type = 'run_retried'")
    assert retried["message"] == "its worker stopped before it was done"


def test_a_worker_that_stops_at_once_does_not_wait_for_a_handler_that_does_not_hear_of_it(
    parts: System, beat: Process
) -> None:
    worker = parts.process("worker", "--concurrency", "1")
    worker.start()
    worker.ready()
    try:
        parts.enqueue("deaf", "k", witness=str(parts.witness("k")))
        parts.until(lambda: parts.starts("k") == 1, "first start")
        worker.signal_main("SIGQUIT")
        worker.wait()
    finally:
        worker.teardown()
