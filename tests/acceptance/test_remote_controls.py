"""What Flower's buttons and `celery control` do to a worker: whatever they end or drop, no run is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app.control import Control
from support.process_nodes import Process
from support.worker_system import LONG, System

from onceonly_jobs.dispatch.celeryconf import KEY_PREFIX, worker_conf

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def extra_env() -> dict[str, str]:
    return {**LONG, "ONCEONLY_DRAIN_S": "0.5"}


@pytest.fixture
def control(parts: System) -> Iterator[Control]:
    app = Celery("controller", set_as_current=False)
    app.conf.update(worker_conf(parts.settings))
    yield app.control
    app.close()


def begun(parts: System, job: str, **payload: Any) -> None:
    """A run with the key `k` whose handler is at work."""
    parts.enqueue(job, "k", witness=str(parts.witness("k")), **payload)
    parts.until(lambda: parts.starts("k") == 1, "first start")


def active_task(parts: System, control: Control) -> str:
    """The task of the message that the worker has."""
    replies = parts.until(lambda: control.inspect(timeout=1).active(), "its answer")
    ((task,),) = replies.values()
    return str(task["id"])


def test_a_worker_that_is_shut_down_hands_back_what_it_has(
    parts: System, worker: Process, control: Control
) -> None:
    begun(parts, "slow_first")
    control.shutdown()
    assert worker.wait() == 0
    assert parts.row("k")["state"] == "queued"
    worker.start()
    row = parts.finished("k")
    assert (row["state"], row["attempt"], row["crashes"]) == ("completed", 2, 0)


def test_a_revoked_message_is_published_again(parts: System, worker: Process, control: Control) -> None:
    go = parts.directory / "go"
    begun(parts, "waits_first", file=str(go))
    with redis.Redis.from_url(parts.settings.require_broker_url()) as broker:
        parts.enqueue("effect", "revoked", witness=str(parts.witness("revoked")))
        (message,) = parts.until(lambda: broker.lrange(f"{KEY_PREFIX}onceonly", 0, -1), "its message")
    replies = control.revoke(json.loads(message)["headers"]["id"], reply=True)
    assert replies
    go.touch()
    assert parts.finished("revoked")["state"] == "completed"
    assert parts.starts("revoked") == 1


@pytest.mark.parametrize(("signal", "crashes"), [("SIGTERM", 0), ("SIGKILL", 1)])
def test_a_terminated_task_is_done_by_another_process(
    parts: System, worker: Process, control: Control, signal: str, crashes: int
) -> None:
    """Without waiting for the end of its claim: SIGTERM lets a process hand it back, of SIGKILL the worker tells."""
    begun(parts, "slow_first")
    control.terminate(active_task(parts, control), signal=signal)
    row = parts.finished("k")
    assert (row["state"], row["attempt"], row["crashes"]) == ("completed", 2, crashes)


def test_a_pool_may_grow_and_shrink(parts: System, worker: Process, control: Control) -> None:
    go = parts.directory / "go"
    begun(parts, "waits_first", file=str(go))
    assert control.pool_grow(2, reply=True)
    keys = [f"e{number}" for number in range(20)]
    for key in keys:
        parts.enqueue("effect", key, witness=str(parts.witness(key)))
    assert {parts.finished(key)["state"] for key in keys} == {"completed"}
    assert control.pool_shrink(2, reply=True)
    go.touch()
    assert parts.finished("k")["attempt"] == 1
    parts.enqueue("effect", "after")
    assert parts.finished("after")["state"] == "completed"
    assert {parts.starts(key) for key in keys} == {1}
