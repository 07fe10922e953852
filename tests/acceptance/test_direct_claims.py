"""Runs that a worker takes without messages, several at a time: killed, stopped and told to end in the midst of it.

The queue counts as full with its first message, so all others have none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from support.process_nodes import Process
from support.worker_system import LONG, System

from onceonly_jobs.dispatch.celeryconf import worker_conf
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import account, runs
from onceonly_jobs.store.database import on

pytestmark = pytest.mark.timeout(240)

CRASHES = {"dies": 2}
UNHURRIED = ("--app", "support.unhurried_worker_app")


@pytest.fixture
def extra_env() -> dict[str, str]:
    return {"ONCEONLY_BROKER_BACKLOG": "1"}


@contextmanager
def running(parts: System, *options: str, concurrency: int = 1, **env: str) -> Iterator[Process]:
    worker = parts.process("worker", "--concurrency", str(concurrency), *options, **env)
    worker.start()
    worker.ready()
    yield worker
    worker.teardown()


def enqueue(parts: System, *wanted: tuple[str, str, dict[str, Any]]) -> list[str]:
    """Commit runs of (job, key, payload) at once, none of which is published. Gives their keys."""
    parts.db.run(account.ensure_tenant, "t", Plan.AGENCY)
    caller = parts.db.run(account.authenticate, parts.db.run(account.create_key, "t").api_key)
    with parts.db.engine.begin() as connection:
        for job, key, payload in wanted:
            spec = JobSpec(name=job, queue="onceonly", max_attempts=5, max_crashes=CRASHES.get(job, 3))
            metadata = {"payload": {"witness": str(parts.witness(key)), **payload}}
            taking = runs.job_taking(caller, spec, key=key, ttl_s=600, metadata=metadata)
            on(connection, runs.take(caller, taking))
    return [key for _, key, _ in wanted]


def effects(count: int, name: str = "e", **payload: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return [("effect", f"{name}{number}", payload) for number in range(count)]


def all_completed(parts: System, keys: Iterable[str]) -> list[dict[str, Any]]:
    """Their rows, in the end."""
    rows = [parts.finished(key) for key in keys]
    assert {row["state"] for row in rows} == {"completed"}
    assert {parts.events(row["key"]).count("run_finished") for row in rows} == {1}
    return rows


def together(rows: Iterable[dict[str, Any]]) -> int:
    """The size of the largest batch: runs that were claimed together have one lease id."""
    leases = [row["worker_lease_id"] for row in rows]
    return max(map(leases.count, leases))


def test_most_runs_need_no_message(parts: System, beat: Process) -> None:
    keys = enqueue(parts, *effects(300))
    with running(parts, *UNHURRIED, concurrency=2):
        rows = all_completed(parts, keys)
    assert together(rows) > 1
    assert {(row["attempt"], row["crashes"]) for row in rows} == {(1, 0)}
    assert {parts.starts(key) for key in keys} == {1}
    assert "attempt 1 completed" in parts.all_logs()


def test_each_has_a_message_where_that_is_wanted(parts: System, beat: Process) -> None:
    keys = enqueue(parts, *effects(20))
    with running(parts, ONCEONLY_DIRECT_CLAIMS="false"):
        rows = all_completed(parts, keys)
    assert together(rows) == 1


def test_each_has_a_message_where_celery_limits_their_rate(parts: System, beat: Process) -> None:
    keys = enqueue(parts, *effects(20))
    with running(parts, "--app", "support.limited_worker_app"):
        rows = all_completed(parts, keys)
    assert together(rows) == 1


def test_the_neighbours_of_poison_are_done_and_blamed_for_nothing(parts: System, beat: Process) -> None:
    """kill -9 of a child that holds a batch. With a lease this long, nothing waits for its end."""
    wanted = [*effects(12, "a"), ("dies", "poison", {}), *effects(12, "b")]
    keys = [key for key in enqueue(parts, *wanted) if key != "poison"]
    with running(parts, *UNHURRIED, **LONG):
        rows = all_completed(parts, keys)
        dead = parts.finished("poison")
    assert (dead["state"], dead["error_code"], dead["crashes"]) == ("failed", "worker_lost", 2)
    assert {row["crashes"] for row in rows} == {0}
    assert max(parts.starts(key) for key in keys) <= 2, "whoever has crashed goes alone"
    assert any("run_retried" in parts.events(row["key"]) for row in rows), "the poison had neighbours"


def test_a_handler_that_ends_its_process_takes_no_neighbour_with_it(parts: System, beat: Process) -> None:
    wanted = [*effects(6, "a"), ("exits", "exit", {}), *effects(6, "b")]
    keys = [key for key in enqueue(parts, *wanted) if key != "exit"]
    with running(parts, *UNHURRIED, **LONG):
        rows = all_completed(parts, keys)
        assert parts.finished("exit")["error_code"] == "worker_lost"
    assert {(row["attempt"], row["crashes"]) for row in rows} == {(1, 0)}


def test_a_worker_that_is_killed_with_a_batch_loses_nothing(parts: System, beat: Process) -> None:
    """All of it at once: nobody is left to tell what had begun, so each counts one crash, and then goes alone."""
    keys = enqueue(parts, *effects(6, "a"), ("stops_first", "stop", {}), *effects(6, "b"))
    with running(parts, *UNHURRIED) as worker:
        parts.until(lambda: parts.starts("stop") == 1, "it stops")
        worker.kill()
        worker.start()
        rows = all_completed(parts, keys)
    assert {row["crashes"] for row in rows} == {0, 1}
    assert all(parts.starts(key) <= 2 for key in keys)


def test_a_process_that_wakes_up_too_late_is_refused(parts: System, beat: Process) -> None:
    """Its batch has expired and was done by others meanwhile: what it says of it does not count."""
    keys = enqueue(parts, *effects(6, "a"), ("stops_first", "stop", {}), *effects(6, "b"))
    with running(parts, *UNHURRIED) as first:
        parts.until(lambda: parts.starts("stop") == 1, "it stops")
        with running(parts):
            rows = all_completed(parts, keys)
            results = [row["result"] for row in rows]
            first.kill("SIGCONT")
            parts.until(lambda: "stale_write_refused" in parts.events("stop"), "the refusal")
        keys += enqueue(parts, *effects(3, "c"))
        assert [row["result"] for row in all_completed(parts, keys)][: len(results)] == results


def test_a_slow_handler_lets_others_have_what_waits_behind_it(parts: System, beat: Process) -> None:
    slow = ("waits_first", "slow", {"file": str(parts.directory / "go")})
    keys = enqueue(parts, *effects(8, "a"), slow, *effects(8, "b"))
    keys.remove("slow")
    with running(parts, concurrency=2, **LONG):
        rows = all_completed(parts, keys)
        assert parts.row("slow")["state"] == "in_progress"
        Path(parts.directory / "go").touch()
        assert parts.finished("slow")["result"] == {"attempt": 1}
    assert {(row["attempt"], row["crashes"]) for row in rows} == {(1, 0)}
    assert {parts.starts(key) for key in keys} == {1}


def test_a_worker_that_is_told_to_end_takes_no_more_and_leaves_nothing_behind(
    parts: System, beat: Process
) -> None:
    keys = enqueue(parts, *effects(300, sleep_s=0.01))
    with running(parts) as worker:
        parts.until(lambda: sum(parts.starts(key) for key in keys) > 20, "it is at work")
        worker.signal_main("SIGTERM")
        worker.wait()
        states = {row["state"] for row in parts.rows("SELECT state FROM runs")}
        assert states == {"queued", "completed"}
        worker.start()
        rows = all_completed(parts, keys)
    assert {(row["attempt"], row["crashes"]) for row in rows} == {(1, 0)}
    assert {parts.starts(key) for key in keys} == {1}


def test_monitors_see_each_run_under_its_own_name(parts: System, beat: Process) -> None:
    app = Celery("watcher", set_as_current=False)
    app.conf.update(worker_conf(parts.settings))
    state, over = app.events.State(), threading.Event()

    def watch() -> None:
        with app.connection_for_read() as given:
            receiver = app.events.Receiver(given, handlers={"*": state.event})
            with receiver.consumer_context(wakeup=False) as (connection, _, _):
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    keys = enqueue(parts, *effects(100), ("gives_up", "bad", {}))
    with running(parts, concurrency=2):
        all_completed(parts, keys[:-1])
        assert parts.finished("bad")["error_code"] == "no_such_customer"
        parts.until(lambda: len(state.tasks) >= 101, "an event of each")
        parts.until(
            lambda: all(task.state in ("SUCCESS", "FAILURE") for task in state.tasks.values()), "ends"
        )
        over.set()
        watcher.join()
    tasks = list(state.tasks.values())
    assert sorted(task.name for task in tasks) == ["effect"] * 100 + ["gives_up"]
    assert {task.state for task in tasks if task.name == "effect"} == {"SUCCESS"}
    assert {task.state for task in tasks if task.name == "gives_up"} == {"FAILURE"}
    assert len({task.worker.hostname for task in tasks}) == 1
    assert all(any(repr(key) in task.kwargs for task in tasks) for key in keys)
