"""Handlers that kill their process, and workers of which only a part dies: told at once, counted, and done once.

Where nothing else is said, the lease is far longer than a test takes: nothing waits for it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.process_nodes import Process
from support.worker_fixtures import serving_system
from support.worker_system import System

from onceonly_jobs.contracts.leases import CancelRequest
from onceonly_jobs.services import account, leases

pytestmark = pytest.mark.timeout(240)

LONG = {"ONCEONLY_WORKER_LEASE_S": "600"}
WEEK_S = 604_800


@pytest.fixture(scope="module")
def serving(servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One worker with one child, and a scheduler; keys have to be unique."""
    directory = tmp_path_factory.mktemp("serving")
    with serving_system(servers, template, directory, 1, **LONG) as system:
        yield system


def cancel(system: System, key: str, lease_id: str | None) -> None:
    caller = system.db.run(account.authenticate, system.db.run(account.create_key, "t").api_key)
    request = CancelRequest(key=key, lease_id=str(lease_id))
    system.db.run(leases.cancel, caller, request, WEEK_S)


def test_a_run_that_kills_its_worker_is_dead_lettered_with_each_death(serving: System) -> None:
    serving.enqueue("dies", "poison", witness=str(serving.witness("poison")))
    row = serving.finished("poison")
    pids = [int(line.split()[2]) for line in serving.witness("poison").read_text().splitlines()]
    assert (row["state"], row["error_code"], row["dead_lettered"]) == ("failed", "worker_lost", True)
    assert (row["attempt"], row["failures"], row["crashes"]) == (2, 0, 2)
    told = [(each["attempt"], each["kind"], each["signal"], each["pid"]) for each in row["errors"]]
    assert told == [(1, "crash", signal.SIGKILL, pids[0]), (2, "crash", signal.SIGKILL, pids[1])]
    assert serving.events("poison") == [
        "run_queued",
        *("run_started", "worker_lost", "run_retried"),
        *("run_started", "worker_lost", "run_finished"),
    ]
    serving.enqueue("effect", "next")
    assert serving.finished("next")["state"] == "completed"


def test_a_process_that_dies_right_after_the_commit_has_done_its_run(serving: System) -> None:
    """The worker learns of a task that never ended; what was stored first stands."""
    before = serving.all_logs().count("WorkerLostError(")
    serving.enqueue("dies_after", "done")
    serving.until(lambda: serving.all_logs().count("WorkerLostError(") > before, "a death that was noticed")
    row = serving.row("done")
    assert (row["state"], row["result"]) == ("completed", {"attempt": 1})
    assert (row["crashes"], row["errors"], serving.events("done")[-1]) == (0, None, "run_finished")


def test_a_cancelled_run_that_will_not_stop_loses_its_process_and_its_key(serving: System) -> None:
    handle = serving.enqueue("deaf", "deaf", witness=str(serving.witness("deaf"))).lease_id
    serving.until(lambda: serving.starts("deaf") == 1, "a start")
    cancel(serving, "deaf", handle)
    assert serving.row("deaf")["state"] == "cancelled"
    serving.until(lambda: serving.enqueue("effect", "deaf").status == "acquired", "the key is free")
    assert serving.finished("deaf")["state"] == "completed"


def test_a_child_does_not_outlive_its_worker_and_another_one_finishes_its_run(
    parts: System, worker: Process
) -> None:
    """kill -9 of the main process alone: nobody is left to tell, so the claim has to expire."""
    parts.enqueue("slow_first", "k", witness=str(parts.witness("k")))
    parts.until(lambda: parts.starts("k") == 1, "a start")
    child = int(parts.witness("k").read_text().split()[-1])
    worker.signal_main("SIGKILL")
    worker.wait()
    parts.until(lambda: not runs_still(child), "the child's end")
    worker.start()
    row = parts.finished("k")
    assert (row["state"], row["result"], row["crashes"]) == ("completed", {"attempt": 2}, 1)
    assert [(each["kind"], each["pid"]) for each in row["errors"]] == [("crash", child)]


def runs_still(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_run_that_was_cancelled_before_all_workers_restarted_never_starts(
    parts: System, worker: Process
) -> None:
    """Its message outlives the cancel and the workers; the claim is refused all the same."""
    worker.kill()
    handle = parts.enqueue("effect", "k", witness=str(parts.witness("k"))).lease_id
    parts.until(lambda: parts.row("k")["publications"] > 0, "its message is out")
    cancel(parts, "k", handle)
    worker.start()
    parts.enqueue("effect", "after")
    assert parts.finished("after")["state"] == "completed"
    row = parts.row("k")
    assert (row["state"], row["attempt"], parts.starts("k")) == ("cancelled", 0, 0)
