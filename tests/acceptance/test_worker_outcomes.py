"""What a real worker makes of all the ways in which a handler can end, or not end."""

from __future__ import annotations

from typing import Any

import pytest
from support.worker_system import System

from onceonly_jobs.contracts.leases import CancelRequest
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.domain.fingerprint import MAX_DEPTH
from onceonly_jobs.services import account, leases
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.outbox import Due

pytestmark = pytest.mark.timeout(180)

RETENTION_S = 3600


def nested(levels: int) -> dict[str, Any]:
    """Objects in objects, so many of them."""
    return {"a": nested(levels - 1)} if levels > 1 else {"a": 1}


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def tenant_caller(serving: System) -> Caller:
    new = serving.db.run(account.create_key, "t")
    return serving.db.run(account.authenticate, new.api_key)


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("nothing", {}),
        ("list", {"data": [1, 2]}),
        ("number", {"data": 1.5}),
        ("model", {"at": "/x"}),
        ("dataclass", {"n": 3}),
    ],
)
def test_what_is_json_becomes_the_result(
    serving: System, key: str, what: str, result: dict[str, Any]
) -> None:
    serving.enqueue("returns", key, what=what)
    row = serving.finished(key)
    assert (row["state"], row["result"]) == ("completed", result)


def test_what_was_sent_as_deep_as_may_be_comes_back_in_a_result(serving: System, key: str) -> None:
    deep = nested(MAX_DEPTH - 1)  # as a payload, it is in an object already
    serving.enqueue("echo", key, **deep)
    row = serving.finished(key)
    assert (row["state"], row["result"]["metadata"]["payload"]) == ("completed", deep)


@pytest.mark.parametrize("what", ["object", "nul", "surrogate", "nan", "huge", "keys"])
def test_what_is_not_json_fails_the_run(serving: System, key: str, what: str) -> None:
    serving.enqueue("returns", key, what=what)
    row = serving.finished(key)
    assert (row["state"], row["error_code"], row["dead_lettered"]) == ("failed", "invalid_result", True)


def test_a_result_that_is_too_large_fails_the_run(serving: System, key: str) -> None:
    serving.enqueue("returns", key, what="large")
    row = serving.finished(key)
    assert (row["state"], row["error_code"]) == ("failed", "result_too_large")
    assert "at most 1048576" in row["error_message"]


def test_a_coroutine_is_a_handler_too(serving: System, key: str) -> None:
    serving.enqueue("asynchronous", key)
    assert serving.finished(key)["result"] == {"attempt": 1}


def test_a_failed_attempt_is_tried_again(serving: System, key: str) -> None:
    serving.enqueue("flaky", key, failures=2)
    row = serving.finished(key)
    assert (row["state"], row["result"]["attempt"]) == ("completed", 3)
    assert serving.events(key).count("run_retried") == 2


def test_the_last_failed_attempt_is_a_dead_letter(serving: System, key: str) -> None:
    serving.enqueue("flaky", key, failures=9)
    row = serving.finished(key)
    assert (row["state"], row["error_code"], row["attempt"]) == ("failed", "handler_error", 3)
    assert (row["error_message"], row["dead_lettered"]) == ("ValueError: not yet", True)


def test_a_handler_may_ask_for_another_attempt(serving: System, key: str) -> None:
    serving.enqueue("asks_again", key)
    assert serving.finished(key)["result"] == {"attempt": 2}


def test_a_handler_may_give_up_at_once(serving: System, key: str) -> None:
    serving.enqueue("gives_up", key)
    row = serving.finished(key)
    assert (row["error_code"], row["error_message"], row["attempt"]) == (
        "no_such_customer",
        "customer 7 is unknown",
        1,
    )
    assert row["dead_lettered"] is False


def test_keys_for_calls_onward_belong_to_one_run_and_step(serving: System, key: str) -> None:
    """The same over attempts, or the retry pays twice; another one per run, or the next month is not paid."""
    serving.enqueue("flaky", key, failures=0)
    serving.enqueue("flaky", f"{key}2", failures=1)
    first, second = serving.finished(key)["result"], serving.finished(f"{key}2")["result"]
    assert len({first["key"], first["other"], second["key"], second["other"]}) == 4


@pytest.mark.parametrize("job", ["limited", "limited_async"])
def test_the_time_limit_ends_a_handler(serving: System, key: str, job: str) -> None:
    serving.enqueue(job, key)
    row = serving.finished(key)
    assert (row["state"], row["error_code"], row["dead_lettered"]) == ("failed", "timeout", True)
    assert "log" not in serving.events(key)


def test_a_handler_that_ignores_its_time_limit_loses_its_process(serving: System, key: str) -> None:
    """And its slot is free again: more of them than there are slots do not stop the worker."""
    keys = [f"{key}{n}" for n in range(3)]
    for each in keys:
        serving.enqueue("stubborn", each, witness=str(serving.witness(each)))
    for each in keys:
        assert serving.finished(each)["error_code"] == "timeout"
    serving.enqueue("effect", key)
    assert serving.finished(key)["state"] == "completed"
    for each in keys:  # it was interrupted once, before its process ended
        serving.until(lambda: serving.starts(each) == 1, "an interruption")  # noqa: B023 (called at once)


def test_a_handler_that_holds_the_interpreter_loses_its_process(serving: System, key: str) -> None:
    """Nothing in Python can end it, and no heartbeat gets through: its slots are free again all the same."""
    keys = [f"{key}{n}" for n in range(2)]
    for each in keys:
        serving.enqueue("hog", each, witness=str(serving.witness(each)))
    for each in keys:
        assert serving.finished(each)["error_code"] == "worker_lost"
    serving.enqueue("effect", key)
    assert serving.finished(key)["state"] == "completed"


@pytest.mark.parametrize("job", ["patient", "sleeper"])
def test_a_cancelled_run_stops_and_frees_its_key(
    serving: System, tenant_caller: Caller, key: str, job: str
) -> None:
    handle = serving.enqueue(job, key, witness=str(serving.witness(key))).lease_id
    serving.until(lambda: serving.starts(key) == 1, "a start")
    serving.db.run(leases.cancel, tenant_caller, CancelRequest(key=key, lease_id=str(handle)), RETENTION_S)
    serving.until(
        lambda: serving.enqueue("effect", key).status == "acquired",
        "the key is free once the worker has stopped",
    )
    assert serving.finished(key)["state"] == "completed"


def test_a_cancelled_queued_run_never_starts(serving: System, tenant_caller: Caller, key: str) -> None:
    path = str(serving.witness(key))
    held = serving.jobs.enqueue("effect", key=key, payload={"witness": path}, delay=1)
    request = CancelRequest(key=key, lease_id=str(held.lease_id))
    serving.db.run(leases.cancel, tenant_caller, request, RETENTION_S)
    serving.jobs.enqueue("effect", key=f"{key} later", delay=2)
    serving.finished(f"{key} later")
    assert serving.starts(key) == 0


def test_repeated_messages_start_a_run_once(serving: System, key: str) -> None:
    serving.enqueue("effect", key, witness=str(serving.witness(key)), sleep_s=1)
    row = serving.row(key)
    due = Due(
        id=row["id"],
        tenant_id="t",
        key=key,
        agent_id=None,
        job="effect",
        queue=row["queue"],
        due_at=row["due_at"],
    )
    publisher = Publisher(serving.settings)
    publisher.publish([due] * 20)
    assert serving.finished(key)["state"] == "completed"
    publisher.publish([due] * 20)
    serving.until(lambda: publisher.backlog(row["queue"]) == 0, "every message is taken")
    publisher.close()
    assert serving.starts(key) == 1


def test_what_a_job_gives_up_on_is_a_dead_letter_at_once(serving: System, key: str) -> None:
    serving.enqueue("picky", key, witness=str(serving.witness(key)))
    row = serving.finished(key)
    assert (row["state"], row["error_code"], row["dead_lettered"]) == ("failed", "handler_error", True)
    assert (row["attempt"], row["failures"], serving.starts(key)) == (2, 2, 2)
    assert [each["message"] for each in row["errors"]] == ["TimeoutError: 1", "FileNotFoundError: 2"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("dies", "the worker's process died: signal 9 (SIGKILL)"),
        ("exits", "the handler ended its process: SystemExit: 3"),
    ],
)
def test_a_handler_that_ends_its_process_is_a_dead_letter(
    serving: System, key: str, job: str, message: str
) -> None:
    serving.enqueue(job, key, witness=str(serving.witness(key)))
    row = serving.finished(key)
    assert (row["state"], row["error_code"], row["dead_lettered"]) == ("failed", "worker_lost", True)
    assert row["error_message"].startswith(message)
    assert serving.starts(key) == 2


def test_a_delayed_run_starts_when_it_is_due(serving: System, key: str) -> None:
    serving.jobs.enqueue("effect", key=key, delay=1.5)
    row = serving.finished(key)
    assert row["started_at"] >= row["due_at"]
    assert (row["due_at"] - row["first_seen_at"]).total_seconds() == pytest.approx(1.5)
