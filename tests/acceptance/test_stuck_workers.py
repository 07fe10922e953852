"""A worker whose line to the broker is bad in ways that nobody tells it of: it notices, ends, and is started again."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
import sqlalchemy as sa
from support.half_open import half_open
from support.process_nodes import Process, RedisServer
from support.worker_system import System

from onceonly_jobs.worker.presence import STUCK_STATUS

pytestmark = pytest.mark.timeout(120)


def kept_up(worker: Process, parts: System, key: str) -> None:
    """Wait for a run's end, and do meanwhile what a supervisor does."""

    def finished() -> bool:
        if worker.status == "exited":
            worker.start()
        return bool(parts.row(key)["state"] == "completed")

    parts.until(finished, f"{key} completed")


def states(parts: System) -> list[str]:
    return [row["state"] for row in parts.rows("SELECT state FROM workers ORDER BY started_at")]


def test_a_worker_behind_a_half_open_connection_is_started_again(
    parts: System, beat: Process, tmp_path: Path
) -> None:
    """It is connected and idle, and Redis hands it messages that never arrive."""
    url = urlsplit(parts.settings.require_broker_url())
    assert url.port is not None
    alive = tmp_path / "alive"
    with half_open(url.port) as line:
        through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{line.port}")))
        env = {
            "ONCEONLY_BROKER_URL": through,
            "ONCEONLY_WATCHDOG_S": "2",
            "ONCEONLY_ALIVE_FILE": str(alive),
        }
        worker = parts.process("worker", "--concurrency", "1", **env)
        worker.start()
        worker.ready()
        try:
            parts.enqueue("effect", "before", witness=str(parts.witness("before")))
            assert parts.finished("before")["state"] == "completed"
            assert alive.exists()
            assert states(parts) == ["serving"]

            line.silence()
            parts.enqueue("effect", "k", witness=str(parts.witness("k")))
            assert worker.wait() == STUCK_STATUS
            assert "this worker is stuck, and ends itself: 1 published runs wait" in worker.logs()
            assert not alive.exists()
            assert states(parts) == ["stuck"]

            kept_up(worker, parts, "k")
            assert parts.starts("k") == 1
            assert parts.row("k")["attempt"] == 1
        finally:
            worker.teardown()


def test_a_worker_gives_up_a_connection_to_the_database_that_has_fallen_silent(
    parts: System, beat: Process
) -> None:
    """Something between them takes all that is sent, so that no time-out of TCP ends it."""
    url = sa.make_url(parts.settings.require_database_url())
    assert url.port is not None
    with half_open(url.port) as line:
        through = url.set(port=line.port).render_as_string(hide_password=False)
        worker = parts.process("worker", "--concurrency", "1", ONCEONLY_DATABASE_URL=through)
        worker.start()
        worker.ready()
        try:
            parts.enqueue("effect", "before", witness=str(parts.witness("before")))
            assert parts.finished("before")["state"] == "completed"
            line.silence()
            parts.enqueue("effect", "k", witness=str(parts.witness("k")))
            assert parts.finished("k")["state"] == "completed"
            assert parts.starts("k") == 1
            line.silence()
            worker.signal_main("SIGTERM")
            assert worker.wait() == 0
        finally:
            worker.teardown()


def test_a_worker_takes_runs_again_after_its_broker_was_rude(
    parts: System, beat: Process, celery_broker_cluster: list[RedisServer]
) -> None:
    """Such outages once left consumers that answered pings and consumed nothing."""
    worker = parts.process("worker", "--concurrency", "1", ONCEONLY_WATCHDOG_S="3")
    worker.start()
    worker.ready()
    try:
        with redis.Redis.from_url(parts.settings.require_broker_url()) as broker:
            for _ in range(3):
                for kind in ("normal", "pubsub"):
                    broker.client_kill_filter(_type=kind, skipme=True)
                time.sleep(0.6)
        parts.enqueue("effect", "killed", witness=str(parts.witness("killed")))
        kept_up(worker, parts, "killed")

        celery_broker_cluster[0].kill()
        celery_broker_cluster[0].restart()
        parts.enqueue("effect", "restarted", witness=str(parts.witness("restarted")))
        kept_up(worker, parts, "restarted")
        assert (parts.starts("killed"), parts.starts("restarted")) == (1, 1)
    finally:
        worker.teardown()
