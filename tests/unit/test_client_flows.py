"""Retries, fail-open, waiting and heartbeats, without a network or a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.worlds import World, ok, refused

from onceonly_jobs.client import account, governed, leases, locks, runs
from onceonly_jobs.client.exceptions import (
    ApiError,
    LeaseLost,
    OverLimitError,
    RateLimitError,
    StillRunning,
    TimedOut,
    UnauthorizedError,
    Unreachable,
    ValidationError,
)
from onceonly_jobs.client.leases import Lease
from onceonly_jobs.client.models import AiResult
from onceonly_jobs.client.runs import Patience

LOST = httpx.ReadError("connection reset")
SLOW = httpx.ReadTimeout("no answer")
DOWN = httpx.ConnectError("refused")
CONFLICT = {"error": "lease_conflict", "reason": "not_owner", "message": "held by another"}
ACQUIRED = {"ok": True, "status": "acquired", "key": "k", "lease_id": "lease_1", "ttl": 60}
POLLING = {"ok": True, "status": "polling", "key": "k", "ttl": 60, "ttl_left": 5}
DONE = {"ok": True, "status": "completed", "key": "k", "result": {"n": 1}, "done_at": "2026-01-01T00:00:00Z"}
RUNNING = {"ok": False, "status": "in_progress", "key": "k"}


def me(world: World) -> Any:
    return world.run(account.get(world.context, "/me"))


# Retries


@pytest.mark.parametrize(
    "failure", [LOST, SLOW, DOWN, *(httpx.Response(s) for s in (429, 500, 502, 503, 504))]
)
def test_what_a_repeat_may_mend_is_repeated(failure: Any) -> None:
    world = World(failure, failure, failure, ok(plan="free"))
    assert me(world) == {"plan": "free"}
    assert world.pauses == [0.5, 1.0, 2.0], "the bounds of full jitter double"


def test_after_three_repeats_the_last_failure_is_raised() -> None:
    world = World(DOWN, LOST, SLOW, SLOW)
    with pytest.raises(TimedOut, match="GET /me: no answer") as caught:
        me(world)
    assert isinstance(caught.value, Unreachable | httpx.TimeoutException)
    assert caught.value.__cause__ is SLOW


def test_pauses_are_jittered_down_to_nothing() -> None:
    world = World(LOST, LOST, ok())
    world.chance = 0.0
    me(world)
    assert world.pauses == [0, 0]


def test_the_servers_own_pause_is_kept_to() -> None:
    world = World(refused(429, "slow down", Retry_After="3"), ok())
    me(world)
    assert world.pauses == [3]


def test_a_pause_longer_than_the_longest_backoff_is_not_sat_out() -> None:
    world = World(refused(429, {"error": "rate_limited"}, Retry_After="30"))
    with pytest.raises(RateLimitError) as caught:
        me(world)
    assert (caught.value.retry_after_sec, caught.value.code, world.pauses) == (30, "rate_limited", [])


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422])
def test_refusals_are_not_repeated(status: int) -> None:
    world = World(refused(status, {"error": "no"}))
    with pytest.raises(Exception, match="no"):
        me(world)
    assert len(world.sent) == 1


def post(world: World) -> Any:
    return world.run(account.post_event(world.context, {"run_id": "r", "type": "note"}, {}))


@pytest.mark.parametrize("failure", [LOST, SLOW, httpx.Response(500), httpx.Response(503)])
def test_an_event_that_may_have_been_written_is_not_written_again(failure: Any) -> None:
    world = World(failure)
    with pytest.raises((ApiError, Unreachable)):
        post(world)
    assert len(world.sent) == 1


@pytest.mark.parametrize("failure", [DOWN, httpx.ConnectTimeout("late"), httpx.Response(429)])
def test_an_event_that_was_surely_not_written_is_sent_again(failure: Any) -> None:
    world = World(failure, ok(event_id=1))
    assert post(world) == {"event_id": 1}


# check_lock


def check(world: World, **options: Any) -> Any:
    return world.run(locks.check_lock(world.context, "k", 60, options.get("meta"), options.get("request_id")))


def test_repeats_of_a_lock_carry_one_call_id() -> None:
    world = World(LOST, ok(status="locked", ttl=60))
    assert check(world).locked
    first, second = (request.headers["X-Request-Id"] for request in world.sent)
    assert first == second
    assert first.startswith("call_")
    other = World(ok(status="locked"))
    check(other)
    assert other.sent[0].headers["X-Request-Id"] != first


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (SLOW, "timeout"),
        (LOST, "request_error"),
        (httpx.Response(500), "api_5xx"),
        (httpx.Response(503), "api_5xx"),
    ],
)
def test_a_lock_fails_open_visibly(failure: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World((5.0, failure))
    result = check(world, meta={"a": 1})
    assert (result.locked, result.duplicate, result.failed_open) == (True, False, True)
    assert (result.raw, result.request_id, result.status_code) == (
        {"fail_open": True, "reason": reason, "metadata": {"a": 1}},
        "fail-open",
        0,
    )
    assert "fails open" in caplog.text


def test_a_lock_repeats_within_the_time_of_one_request_before_it_fails_open() -> None:
    world = World(DOWN, DOWN, (0.0, DOWN), DOWN)
    assert check(world).failed_open
    assert world.pauses == [0.5, 1.0, 2.0]
    hasty = World((5.0, SLOW))
    assert check(hasty).failed_open
    assert len(hasty.sent) == 1


def test_a_lock_that_must_not_fail_open_raises() -> None:
    world = World(*[SLOW] * 4, fail_open=False)
    with pytest.raises(TimedOut):
        check(world)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refused(401, "Invalid API key"), UnauthorizedError),
        (refused(402, {"error": "payment_required"}), OverLimitError),
        (refused(422, [{"msg": "no"}]), ValidationError),
        (refused(429, "x", Retry_After="60"), RateLimitError),
        (refused(409, {"error": "fingerprint_mismatch"}), ApiError),
    ],
)
def test_a_lock_never_fails_open_over_a_refusal(reply: httpx.Response, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(World(reply))


@pytest.mark.parametrize(
    ("reply", "locked"),
    [
        (ok(status="locked", success=False), True),
        (ok(status="DUPLICATE", success=True), False),
        (httpx.Response(200, json={}, headers={"X-OnceOnly-Status": "locked"}), True),
        (ok(success=True), True),
        (ok(), False),
        (httpx.Response(200, text="?"), False),
        (refused(409, {"error": "Duplicate blocked", "first_seen_at": "2026-01-01T00:00:00Z"}), False),
    ],
)
def test_an_answer_that_does_not_say_locked_is_no_lock(reply: httpx.Response, locked: bool) -> None:
    result = check(World(reply))
    assert (result.locked, result.duplicate, result.ttl) == (locked, not locked, 60)


def test_a_duplicate_after_a_lost_answer_says_that_it_may_be_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = check(World(LOST, ok(status="duplicate", ttl=60)))
    assert result.duplicate
    assert result.raw["unsure"] is True
    assert "its answer was lost" in caplog.text
    assert "unsure" not in check(World(DOWN, ok(status="duplicate"))).raw


# Errors


def error_of(status: int, detail: Any, **headers: str) -> Any:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        me(World(refused(status, detail, **headers)))
    return caught.value


def test_errors_carry_what_there_is_to_know() -> None:
    error = error_of(402, {"error": "daily_spend_exceeded", "message": "Daily spend limit exceeded ($1.00)",
                           "agent_id": "a", "resets_at": "2026-03-02T00:00:00Z"}, X_Request_Id="req_1")  # fmt: skip
    assert isinstance(error, OverLimitError)
    assert str(error) == "Daily spend limit exceeded ($1.00)"
    assert (error.status_code, error.code, error.request_id) == (402, "daily_spend_exceeded", "req_1")
    assert error.__notes__ == ["Wait until 2026-03-02T00:00:00Z, or raise the limit with gov.upsert_policy."]


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (401, "Missing Authorization Bearer token", UnauthorizedError),
        (403, "API key disabled", UnauthorizedError),
        (403, {"error": "forbidden"}, UnauthorizedError),
        (403, {"error": "feature_not_available", "message": "upgrade required"}, ApiError),
        (403, {"error": "plan_limit", "message": "FREE plan limit: max 1 tools"}, ApiError),
        (404, "Not Found", ApiError),
        (409, CONFLICT, LeaseLost),
        (418, {"error": "teapot"}, ApiError),
    ],
)
def test_a_refusal_is_the_class_that_says_what_it_is_about(status: int, detail: Any, kind: type) -> None:
    assert type(error_of(status, detail)) is kind


def test_an_error_without_a_readable_body_is_an_error_still() -> None:
    world = World(httpx.Response(404, text="<html>"))
    with pytest.raises(ApiError, match="the server answered 404") as caught:
        me(world)
    assert caught.value.detail == {}


# Waiting


def wait(world: World, timeout: float = 60.0) -> AiResult:
    return world.run(runs.wait(world.context, "k", Patience(timeout)))


def test_a_server_that_holds_the_request_is_asked_once_per_hold() -> None:
    world = World((20.0, ok(**RUNNING)), (3.0, ok(**DONE)))
    assert wait(world).result == {"n": 1}
    assert world.paths == ["/ai/result", "/ai/result"]
    assert [(r.params or {})["wait"] for r in world.sent] == [20.0, 20.0]
    assert (world.pauses, world.now) == ([], 23.0)
    assert world.sent[0].hold_s == 20.0


def test_a_server_that_does_not_is_polled_as_it_suggests() -> None:
    status = ok(**RUNNING, retry_after_sec=2)
    world = World(ok(**RUNNING), status, ok(**RUNNING), ok(**RUNNING, retry_after_sec=60), ok(**DONE))
    assert wait(world).ok
    assert world.pauses == [2.0, 5.0], "within poll_min and poll_max"


def test_the_last_hold_ends_with_the_time_out() -> None:
    world = World((20.0, ok(**RUNNING)), (5.0, ok(**RUNNING)))
    assert wait(world, 25.0) == AiResult(ok=False, status="failed", key="k", error_code="timeout")
    assert [(r.params or {})["wait"] for r in world.sent] == [20.0, 5.0]


def test_no_time_is_one_look() -> None:
    world = World(ok(**RUNNING))
    assert wait(world, 0).error_code == "timeout"
    assert world.sent[0].params == {"key": "k"}


def test_waiting_outlives_a_restart_of_the_server() -> None:
    down = [DOWN] * 8
    world = World((4.0, LOST), *down, refused(503, {"error": "unavailable"}), ok(**DONE))
    assert wait(world).ok


def test_a_server_that_stays_away_is_reported_at_the_time_out() -> None:
    world = World(*[(1.0, DOWN)] * 50)
    with pytest.raises(Unreachable):
        wait(world, 10)
    assert 10 <= world.now <= 12


@pytest.mark.parametrize("status", [401, 404, 422])
def test_waiting_ends_with_a_refusal(status: int) -> None:
    world = World(refused(status, {"error": "no"}))
    with pytest.raises(Exception, match="no"):
        wait(world)
    assert len(world.sent) == 1


def test_a_waiter_with_a_lease_extends_it() -> None:
    extending = runs.Extending("lease_1", 60, 30.0)
    world = World((20.0, ok(**RUNNING)), (10.0, ok(**RUNNING)), ok(status="extended"), (1.0, ok(**DONE)))
    world.run(runs.wait(world.context, "k", Patience(60), extending))
    assert world.paths == ["/ai/result", "/ai/result", "/ai/extend", "/ai/result"]
    assert world.sent[2].json == {"key": "k", "lease_id": "lease_1", "ttl": 60}


def test_a_finished_run_needs_no_waiting() -> None:
    world = World(ok(**DONE))
    flow = runs.run_and_wait(world.context, "k", None, None, None, Patience(), 30.0)
    assert world.run(flow) == AiResult.from_dict(DONE)


# Tool calls

STILL = refused(409, {"error": "in_progress", "key": "tool:1", "retry_after_sec": 1})
EXECUTED = ok(ok=True, allowed=True, decision="executed", result={"sent": True})


def call_tool(world: World, timeout: float = 60.0) -> Any:
    return world.run(runs.run_tool(world.context, "a", "t", {"x": 1}, 0.5, None, timeout))


def test_a_tool_call_says_how_long_it_waits_and_attaches_to_itself() -> None:
    world = World((20.0, STILL), (0.1, STILL), EXECUTED)
    assert call_tool(world).result == {"sent": True}
    assert [r.headers["Prefer"] for r in world.sent] == ["wait=20"] * 3
    assert len({str(r.json) for r in world.sent}) == 1
    assert world.pauses == [pytest.approx(0.9)]


def test_a_tool_that_outlasts_the_caller_leaves_its_key() -> None:
    world = World((20.0, STILL), (20.0, STILL))
    with pytest.raises(StillRunning) as caught:
        call_tool(world, 40)
    assert caught.value.key == "tool:1"


# Leases


def run_fn(world: World, function: Callable[[], Any], **options: Any) -> AiResult:
    given: dict[str, Any] = {
        "ttl": 60,
        "metadata": None,
        "extend_every": 30.0,
        "wait_on_conflict": True,
        "patience": Patience(),
        "error_code": "fn_error",
        **options,
    }
    return world.run(leases.run_fn(world.context, "k", function, **given))


def never() -> None:
    raise AssertionError("must not run")


def test_the_result_is_stored_however_long_the_server_is_away() -> None:
    """Up to a minute: what was done must not be done again for a restart's sake."""
    world = World(ok(**ACQUIRED), *[DOWN] * 12, ok(status="completed", done_at="now"))
    result = run_fn(world, lambda: {"n": 1})
    assert (result.ok, result.result, result.done_at) == (True, {"n": 1}, "now")
    assert world.paths == ["/ai/lease", *["/ai/complete"] * 13]


def test_a_result_that_could_not_be_stored_is_never_a_failure_of_the_function() -> None:
    world = World(ok(**ACQUIRED), *[(10.0, LOST)] * 20)
    with pytest.raises(Unreachable) as caught:
        run_fn(world, lambda: {"n": 1})
    assert "/ai/fail" not in world.paths
    assert "The work was done" in "".join(caught.value.__notes__)


def test_a_refused_result_is_a_lost_lease() -> None:
    world = World(ok(**ACQUIRED), refused(409, CONFLICT))
    with pytest.raises(LeaseLost):
        run_fn(world, lambda: 1)
    assert world.paths == ["/ai/lease", "/ai/complete"]


@pytest.mark.parametrize("value", [{"x": object()}, {"x": float("nan")}])
def test_a_result_without_a_json_form_is_a_stored_failure(value: Any) -> None:
    world = World(ok(**ACQUIRED), ok(status="failed"))
    with pytest.raises(TypeError, match="JSON"):
        run_fn(world, lambda: value)
    assert (world.sent[-1].json or {})["error_code"] == "result_rejected"


@pytest.mark.parametrize("status", [413, 422])
def test_a_result_that_the_server_does_not_take_is_a_stored_failure(status: int) -> None:
    world = World(ok(**ACQUIRED), refused(status, {"error": "too_large"}), ok(status="failed"))
    with pytest.raises((ApiError, ValidationError)):
        run_fn(world, lambda: {"n": 1})
    assert (world.sent[-1].json or {})["error_code"] == "result_rejected"


def test_the_functions_error_is_raised_whether_or_not_it_could_be_stored() -> None:
    def broken() -> None:
        raise KeyError("mine")

    for answer in (ok(status="failed"), refused(409, CONFLICT), refused(400, "no")):
        world = World(ok(**ACQUIRED), answer)
        with pytest.raises(KeyError, match="mine"):
            run_fn(world, broken)
        assert (world.sent[-1].json or {})["error_code"] == "fn_error"


def test_a_waiter_takes_over_from_a_holder_that_died() -> None:
    """The lease had 5 s left; nobody extended it."""
    world = World(ok(**POLLING), (6.0, ok(**RUNNING)), ok(**ACQUIRED), ok(status="completed", done_at="now"))
    assert run_fn(world, lambda: {"n": 2}).result == {"n": 2}
    assert world.paths == ["/ai/lease", "/ai/result", "/ai/lease", "/ai/complete"]


def test_a_waiter_gives_up_at_its_own_time_out() -> None:
    world = World(ok(**POLLING), (6.0, ok(**RUNNING)), ok(**POLLING), (4.0, ok(**RUNNING)))
    result = run_fn(world, never, patience=Patience(10.0))
    assert result.error_code == "timeout"


def test_others_get_the_outcome_at_once() -> None:
    assert run_fn(World(ok(**DONE)), never) == AiResult.from_dict(DONE)
    failed = {"ok": False, "status": "failed", "key": "k", "error_code": "timeout", "done_at": "x"}
    assert run_fn(World(ok(**failed)), never).done_at == "x"


def kept(world: World) -> Lease:
    lease = Lease("k", ACQUIRED, ttl=60, asked_at=0.0)
    lease.working = True
    world.run(leases.beats(world.context, lease, leases.beat_every(lease.ttl, 30.0)))
    return lease


def test_the_first_heartbeat_comes_after_a_third_of_the_lease() -> None:
    world = World(ok(), ok(), refused(409, CONFLICT))
    lease = kept(world)
    assert world.pauses == [20, 20, 20]
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_heartbeat_that_fails_is_repeated_soon() -> None:
    world = World(DOWN, refused(503, "away"), ok(), refused(404, {"error": "not_found"}))
    lease = kept(world)
    assert world.pauses == [20, 1, 1, 20]
    assert lease.lost


def test_a_lease_that_nobody_could_confirm_for_its_whole_time_is_lost() -> None:
    world = World(*[(2.0, DOWN)] * 100)
    lease = kept(world)
    assert lease.lost
    assert 60 <= world.now <= 62
    with pytest.raises(LeaseLost) as caught:
        lease.check()
    assert caught.value.detail["reason"] == "unconfirmed"
    assert all(request.timeout_s is not None and request.timeout_s <= 40 for request in world.sent)


def test_a_heartbeat_after_the_end_of_the_work_concerns_nobody() -> None:
    told: list[Lease] = []
    lease = Lease("k", ACQUIRED, ttl=60, asked_at=0.0, on_lost=told.append)
    world = World(refused(409, CONFLICT))
    world.run(leases.beats(world.context, lease, 20.0))
    assert not lease.lost
    assert told == []


def test_the_holder_is_told_once_whatever_its_callback_does() -> None:
    def callback(lease: Lease) -> None:
        told.append(lease.key)
        raise RuntimeError("callback")

    told: list[str] = []
    lease = Lease("k", ACQUIRED, ttl=60, asked_at=0.0, on_lost=callback)
    lease.lose(LeaseLost("first"))
    lease.lose(LeaseLost("second"))
    assert told == ["k"]
    with pytest.raises(LeaseLost, match="first"):
        lease.check()


# Names in paths


@pytest.mark.parametrize(
    ("name", "path"),
    [("a b/c", "/policies/a%20b%2Fc"), ("..", "/policies/%2E%2E"), ("agent:x", "/policies/agent%3Ax")],
)
def test_a_name_stays_one_segment(name: str, path: str) -> None:
    world = World(ok(agent_id=name, policy={}))
    world.run(governed.get_policy(world.context, name))
    assert world.paths == [path]


def test_an_agent_is_named_or_the_clients_own() -> None:
    world = World(ok(agent_id="mine", is_enabled=False), agent_id="mine")
    world.run(governed.switch(world.context, None, "disable", ""))
    assert world.paths == ["/agents/mine/disable"]
    with pytest.raises(ValueError, match="ONCEONLY_AGENT_ID"):
        world.run(governed.switch(World().context, None, "disable", ""))
    with pytest.raises(ValueError, match="no agent"):
        world.run(governed.switch(world.context, "", "disable", ""))
