"""POST /ai/run (§2.3, the refusals of §2.4, §3)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

from onceonly_jobs.dispatch.celeryconf import KEY_PREFIX
from onceonly_jobs.domain.fingerprint import result_hash
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import claims
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock

if TYPE_CHECKING:
    from tests.integration.conftest import Api

AI_LIMIT = 10_000_000


def stored(api: Api, column: str, key: str = "k") -> Any:
    """A column of the run's row."""
    query = sa.text(f"SELECT {column} FROM runs WHERE tenant_id = :tenant_id AND key = :key")
    with api.db.engine.connect() as connection:
        return connection.execute(query, {"tenant_id": api.tenant_id, "key": key}).scalar_one()


def answer_of(key: str, recent: object, **changed: Any) -> dict[str, Any]:
    """The whole field set of §2.3. `allowed` and `decision` must not be there: they make SDKs see a tool call."""
    return {
        "ok": True,
        "key": key,
        "ttl": 1800,
        "ttl_left": None,
        "lease_id": None,
        "first_seen_at": recent,
        "done_at": None,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": None,
        "usage": 1,
        "limit": AI_LIMIT,
        "charged": 0,
    } | changed


def test_first_call_acquires(api: Api, a_lease_id: object, recent: object) -> None:
    answer = api.post("/ai/run", key="report:daily:2026-03-31", ttl=1800, metadata={"n": 1})
    assert answer.status_code == 200
    assert answer.json() == answer_of(
        "report:daily:2026-03-31", recent, status="acquired", lease_id=a_lease_id, version=1, charged=1
    )


def test_later_calls_attach_and_never_start_a_second_execution(api: Api, recent: object) -> None:
    api.post("/ai/run", key="k", ttl=1800)
    queued = answer_of("k", recent, status="polling", version=1, ttl_left=1800, retry_after_sec=1)
    assert api.post("/ai/run", key="k", ttl=60).json() == queued

    claim = api.claim("k")
    running = api.post("/ai/run", key="k").json()
    assert 1790 <= running.pop("ttl_left") <= 1800
    expected = answer_of("k", recent, status="polling", version=running["version"], retry_after_sec=1)
    del expected["ttl_left"]
    assert running == expected
    assert running["version"] > 1
    assert stored(api, "fencing_token") == claim.fencing_token > 0


def test_a_completed_run_answers_its_result(api: Api, recent: object) -> None:
    api.post("/ai/run", key="k", ttl=1800)
    api.work("k", {"data": "é"})
    body = api.post("/ai/run", key="k").json()
    assert body == answer_of(
        "k",
        recent,
        status="completed",
        version=body["version"],
        done_at=recent,
        result={"data": "é"},
        result_hash=result_hash({"data": "é"}),
    )


def test_a_failed_run_answers_its_code_and_no_result(api: Api, recent: object) -> None:
    api.post("/ai/run", key="k", ttl=1800)
    api.work("k", error_code="policy_blocked")
    body = api.post("/ai/run", key="k").json()
    assert body == answer_of(
        "k",
        recent,
        ok=False,
        status="failed",
        version=body["version"],
        done_at=recent,
        error_code="policy_blocked",
    )


def test_failed_is_sticky(api: Api) -> None:
    """§2.10, §7-Q22: later calls are answered `failed`, nothing runs again."""
    api.post("/ai/run", key="k")
    api.work("k", error_code="boom")
    assert [api.post(path, key="k").json()["status"] for path in ("/ai/run", "/ai/lease")] == ["failed"] * 2
    assert api.usage("ai")["usage"] == 1


def test_of_concurrent_calls_exactly_one_acquires(api: Api) -> None:
    bodies = [answer.json() for answer in api.at_once(32, lambda _: api.post("/ai/run", key="race"))]
    assert Counter(body["status"] for body in bodies) == {"acquired": 1, "polling": 31}
    assert sum(body["charged"] for body in bodies) == 1


def test_lease_and_run_share_one_key_space(api: Api) -> None:
    api.post("/ai/lease", key="k")
    assert api.post("/ai/run", key="k").json()["status"] == "polling"
    api.post("/ai/run", key="l")
    assert api.post("/ai/lease", key="l").json()["status"] == "polling"


def test_work_is_enqueued_once_and_only_on_acquired(serve: Callable[..., Api]) -> None:
    """§2.3: the server enqueues background work only on `acquired`."""
    api = serve(default_queue="contract_queue")
    for key in ("a", "b", "a", "a", "b"):
        api.post("/ai/run", key=key)
    with redis.Redis.from_url(api.app.settings.require_broker_url()) as broker:
        deadline = time.monotonic() + 60
        while broker.llen(f"{KEY_PREFIX}contract_queue") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert broker.llen(f"{KEY_PREFIX}contract_queue") == 2


# The requester's handle


def test_extend_with_the_handle_before_the_claim_sets_the_length_of_the_time_limit(api: Api) -> None:
    lease_id = api.post("/ai/run", key="k", ttl=60).json()["lease_id"]
    answer = api.post("/ai/extend", key="k", lease_id=lease_id, ttl=600)
    assert answer.status_code == 200
    assert answer.json() == {"ok": True, "status": "extended", "key": "k", "ttl": 600, "version": 2}
    claim = api.claim("k")
    assert (claim.deadline_at - claim.claimed_at).total_seconds() == 600


def test_extend_with_the_handle_sets_the_running_time_limit_and_not_the_workers_lease(api: Api) -> None:
    lease_id = api.post("/ai/run", key="k", ttl=60).json()["lease_id"]
    api.claim("k")
    before = stored(api, "lease_until_at")
    answer = api.post("/ai/extend", key="k", lease_id=lease_id, ttl=600)
    assert answer.json() == {
        "ok": True,
        "status": "extended",
        "key": "k",
        "ttl": 600,
        "version": answer.json()["version"],
    }
    assert 590 <= api.get("/ai/status", key="k").json()["ttl_left"] <= 600
    assert stored(api, "lease_until_at") == before


def test_complete_and_fail_with_the_handle_are_not_owner_in_every_state(api: Api) -> None:
    """§2.3: the worker that runs the job holds a lease of its own."""
    lease_id = api.post("/ai/run", key="k").json()["lease_id"]

    def refused(status: str) -> None:
        for path, extra in (("/ai/complete", {"result": {"x": 1}}), ("/ai/fail", {"error_code": "e"})):
            answer = api.post(path, key="k", lease_id=lease_id, **extra)
            assert answer.status_code == 409
            assert answer.json() == {
                "detail": {
                    "error": "lease_conflict",
                    "reason": "not_owner",
                    "message": "lease is held by another caller",
                    "key": "k",
                    "status": status,
                    "version": stored(api, "version"),
                }
            }

    refused("in_progress")
    claim = api.claim("k")
    refused("in_progress")
    api.db.run(claims.complete, claim, {"of": "the worker"}, 600)
    refused("completed")
    assert api.get("/ai/result", key="k").json()["result"] == {"of": "the worker"}


def test_the_workers_lease_is_never_disclosed(api: Api) -> None:
    api.post("/ai/run", key="k")
    worker_lease = api.claim("k").lease_id
    texts = [api.post("/ai/run", key="k").text]
    texts += [api.get(path, key="k").text for path in ("/ai/status", "/ai/result")]
    texts += [api.get(path).text for path in ("/runs/k", "/runs", "/events")]
    assert not [text for text in texts if worker_lease in text]


def test_the_workers_lease_gives_no_right_over_http(api: Api) -> None:
    api.post("/ai/run", key="k")
    worker_lease = api.claim("k").lease_id
    for path in ("/ai/extend", "/ai/complete", "/ai/cancel"):
        assert api.post(path, key="k", lease_id=worker_lease).status_code == 409


def test_cancel_of_a_queued_run_frees_the_key_at_once(api: Api) -> None:
    first = api.post("/ai/run", key="k").json()
    answer = api.post("/ai/cancel", key="k", lease_id=first["lease_id"], reason="no longer wanted")
    assert answer.status_code == 200
    assert answer.json() == {"ok": True, "status": "cancelled", "key": "k", "version": 2}
    status = api.get("/ai/status", key="k").json()
    assert (status["ok"], status["status"], status["error_code"]) == (False, "failed", "cancelled")

    again = api.post("/ai/run", key="k").json()
    assert (again["status"], again["version"], again["charged"]) == ("acquired", 3, 1)
    assert again["first_seen_at"] == first["first_seen_at"]
    api.work("k", {"second": True})
    assert api.get("/ai/result", key="k").json()["result"] == {"second": True}


def test_cancel_of_a_running_run_is_seen_at_once_and_frees_the_key_when_the_worker_stops(api: Api) -> None:
    """§3.3: server-run: `polling` until its worker has stopped or its lease has ended."""
    lease_id = api.post("/ai/run", key="k").json()["lease_id"]
    claim = api.claim("k")
    assert api.post("/ai/cancel", key="k", lease_id=lease_id).json()["status"] == "cancelled"
    for path in ("/ai/status", "/ai/result"):
        seen = api.get(path, key="k").json()
        assert (seen["ok"], seen["status"], seen["error_code"]) == (False, "failed", "cancelled")

    held = api.post("/ai/run", key="k").json()
    assert (held["ok"], held["status"], held["charged"]) == (True, "polling", 0)
    assert (held["lease_id"], held["error_code"], held["done_at"]) == (None, None, None)
    assert isinstance(held["retry_after_sec"], int)
    assert isinstance(held["ttl_left"], int)
    assert api.post("/ai/lease", key="k").json()["status"] == "polling"

    api.db.run(claims.release, claim)
    assert api.post("/ai/run", key="k").json()["status"] == "acquired"


def test_cancel_of_a_running_run_frees_the_key_when_the_workers_lease_ends(
    serve: Callable[..., Api], clock: Clock
) -> None:
    api = serve()
    lease_id = api.post("/ai/run", key="k").json()["lease_id"]
    api.claim("k", lease_s=15)
    api.post("/ai/cancel", key="k", lease_id=lease_id)
    clock.advance(13)
    assert api.post("/ai/run", key="k").json()["status"] == "polling"
    clock.advance(3)
    assert api.post("/ai/run", key="k").json()["status"] == "acquired"


def test_a_cancelled_run_keeps_its_worker_from_writing_an_outcome(api: Api) -> None:
    lease_id = api.post("/ai/run", key="k").json()["lease_id"]
    claim = api.claim("k")
    api.post("/ai/cancel", key="k", lease_id=lease_id)
    assert api.db.run(claims.complete, claim, {"late": True}, 600) is claims.Ending.CANCELLED
    result = api.get("/ai/result", key="k").json()
    assert (result["status"], result["error_code"], result["result"]) == ("failed", "cancelled", None)


# Timeline and metering


def test_a_run_writes_its_timeline_under_its_run_id(api: Api) -> None:
    api.post("/ai/run", key="k", metadata={"run_id": "night report", "agent_id": "bot"})
    api.work("k", {})
    events = api.get("/runs/night%20report").json()["events"]
    seen = [(event["type"], event["status"], event["agent_id"]) for event in events]
    assert seen[-2:] == [("run_started", "started", "bot"), ("run_finished", "completed", "bot")]
    assert api.get("/runs/k").json()["total"] == 0


def test_the_timeline_of_a_failed_run_tells_why(api: Api) -> None:
    """§2.19: they hold the failure reason."""
    api.post("/ai/run", key="k")
    api.work("k", error_code="charge_failed")
    last = api.get("/runs/k").json()["events"][-1]
    assert (last["type"], last["status"], last["message"]) == ("run_finished", "failed", "charge_failed")


def test_metering_is_that_of_leases(api: Api) -> None:
    for key in ("a", "a", "b"):
        api.post("/ai/run", key=key)
    api.work("a", {})
    api.post("/ai/run", key="a")
    assert api.usage("ai") == {
        "usage": 2,
        "limit": AI_LIMIT,
        "requests_total_month": 4,
        "blocked_total_month": 0,
        "charged_total_month": 2,
        "polling_total_month": 1,
    }


# Which job runs


def test_a_run_picks_its_job_by_name_then_by_pattern_then_by_default(
    serve: Callable[..., Api], db: Database
) -> None:
    specs = [
        JobSpec(name="daily_summary", queue="reports", match="report:daily:*"),
        JobSpec(name="mail", queue="mails", match="report:*"),
    ]
    db.run(claims.announce, specs)
    api = serve()
    api.post("/ai/run", key="named", metadata={"task": "mail"})
    api.post("/ai/run", key="report:daily:1")
    api.post("/ai/run", key="report:weekly:1")
    api.post("/ai/run", key="other")
    jobs = [stored(api, "job", key) for key in ("named", "report:daily:1", "report:weekly:1", "other")]
    assert jobs == ["mail", "daily_summary", "mail", "echo"]
    assert stored(api, "queue", "named") == "mails"


def test_an_unknown_task_is_refused_and_starts_nothing(api: Api) -> None:
    answer = api.post("/ai/run", key="k", metadata={"task": "nosuch"})
    assert answer.status_code == 400
    assert answer.json()["detail"]["error"] == "unknown_task"
    assert answer.json()["detail"]["task"] == "nosuch"
    assert api.rows("runs") == 0


# The other shape


def test_a_tool_call_finds_no_tool(api: Api) -> None:
    """§2.4: 404; §6.3: the other shape's answers carry `allowed` and `decision`, this is none."""
    answer = api.post("/ai/run", agent_id="a", tool="x", args={"n": 1}, spend_usd=0.0)
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": {
            "error": "tool_not_found",
            "message": "no tool named 'x' is registered for this agent",
            "tool": "x",
            "agent_id": "a",
        }
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl": 60, "metadata": {}},
        {"key": "k", "agent_id": "a", "tool": "t"},
        {"key": "k", "tool": "t"},
        {"key": "k", "agent_id": "a"},
        {"agent_id": "a"},
        {"tool": "t"},
        {"key": None, "agent_id": None, "tool": None},
        {"key": "", "agent_id": "a", "tool": "t"},
        {"agent_id": "a", "tool": "t", "spend_usd": -0.01},
        {"agent_id": "a", "tool": "t", "spend_usd": "1"},
        {"agent_id": "a", "tool": "t", "args": []},
    ],
)
def test_neither_or_both_shapes_or_half_of_one_is_invalid(api: Api, body: dict[str, Any]) -> None:
    answer = api.request("POST", "/ai/run", json=body)
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)
    assert api.rows("runs") == 0
