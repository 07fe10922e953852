"""What passes with time: locks, leases, polling advice, retention, months and days (§1.8, §2.1, §3). Nothing sleeps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import claims, outbox
from onceonly_jobs.testing import Clock

if TYPE_CHECKING:
    from tests.integration.conftest import Api

DAY_S = 86_400
WEEK_S = 7 * DAY_S

Serve = Callable[..., "Api"]


@pytest.fixture
def api(serve: Serve, clock: Clock) -> Api:
    """A tenant in a time of its own."""
    return serve()


def move_to(clock: Clock, at: str) -> None:
    """Let it be that time (UTC)."""
    clock.move_to(datetime.fromisoformat(at))


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


# check-lock


def test_a_lock_frees_itself_ttl_seconds_after_the_first_call_whatever_duplicates_came(
    api: Api, clock: Clock
) -> None:
    """§2.1: a duplicate neither refreshes nor shortens it."""
    api.post("/check-lock", key="k", ttl=100)
    clock.advance(50)
    first_seen_at = api.post("/check-lock", key="k", ttl=1000).json()["first_seen_at"]
    clock.advance(40)
    assert api.post("/check-lock", key="k", ttl=10).json() == {
        "success": False,
        "status": "duplicate",
        "key": "k",
        "ttl": 100,
        "first_seen_at": first_seen_at,
    }
    clock.advance(11)
    assert api.post("/check-lock", key="k", ttl=30).json() == {
        "success": True,
        "status": "locked",
        "key": "k",
        "ttl": 30,
        "first_seen_at": None,
    }
    again = api.post("/check-lock", key="k").json()
    assert again["ttl"] == 30
    assert 100 <= seconds_between(first_seen_at, again["first_seen_at"]) <= 105


def test_of_concurrent_calls_after_expiry_exactly_one_is_locked(api: Api, clock: Clock) -> None:
    api.post("/check-lock", key="k", ttl=10)
    clock.advance(11)
    answers = api.at_once(16, lambda _: api.post("/check-lock", key="k", ttl=60))
    assert sorted(answer.json()["status"] for answer in answers) == ["duplicate"] * 15 + ["locked"]


def test_a_new_window_compares_only_its_own_fingerprint(api: Api, clock: Clock) -> None:
    api.post("/check-lock", key="k", ttl=10, fingerprint="one")
    clock.advance(11)
    assert api.post("/check-lock", key="k", ttl=10, fingerprint="two").json()["status"] == "locked"
    assert api.post("/check-lock", key="k", fingerprint="one").status_code == 409


# leases


def test_polling_is_advised_after_1_s_for_the_first_10_s_and_then_after_5(api: Api, clock: Clock) -> None:
    """§3.3"""
    api.post("/ai/lease", key="lease", ttl=600)
    api.post("/ai/run", key="run", ttl=600)

    def advice() -> set[int]:
        seen = {api.get("/ai/status", key=key).json()["retry_after_sec"] for key in ("lease", "run")}
        return seen | {api.post("/ai/lease", key=key).json()["retry_after_sec"] for key in ("lease", "run")}

    assert advice() == {1}
    clock.advance(8)
    assert advice() == {1}
    clock.advance(3)
    assert advice() == {5}


def test_ttl_left_counts_down(api: Api, clock: Clock) -> None:
    api.post("/ai/lease", key="k", ttl=600)
    clock.advance(500)
    assert 98 <= api.get("/ai/status", key="k").json()["ttl_left"] <= 100
    assert 98 <= api.post("/ai/lease", key="k").json()["ttl_left"] <= 100


def test_an_expired_lease_reads_as_in_progress_to_be_polled_soon(api: Api, clock: Clock) -> None:
    """§3.3: expired, free for takeover."""
    api.post("/ai/lease", key="k", ttl=60)
    clock.advance(61)
    status = api.get("/ai/status", key="k").json()
    assert (status["ok"], status["status"]) == (True, "in_progress")
    assert (status["ttl_left"], status["retry_after_sec"]) == (0, 1)
    assert api.get("/ai/result", key="k").json()["status"] == "in_progress"


def test_an_expired_lease_is_taken_over_by_the_next_caller(
    api: Api, clock: Clock, a_lease_id: object
) -> None:
    """§3.2: new lease_id, version +1, charged 1; §3.4: first_seen_at is kept."""
    first = api.post("/ai/lease", key="k", ttl=60).json()
    clock.advance(61)
    second = api.post("/ai/lease", key="k", ttl=90).json()
    assert second == first | {
        "lease_id": a_lease_id,
        "ttl": 90,
        "version": 2,
        "usage": 2,
    }
    assert second["lease_id"] != first["lease_id"]


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/ai/extend", {"ttl": 60}),
        ("/ai/complete", {"result": {"by": "the zombie"}}),
        ("/ai/fail", {"error_code": "e"}),
        ("/ai/cancel", {}),
    ],
)
def test_after_a_takeover_the_old_holder_is_refused_and_changes_nothing(
    api: Api, clock: Clock, path: str, extra: dict[str, Any]
) -> None:
    old = api.post("/ai/lease", key="k", ttl=60).json()["lease_id"]
    clock.advance(61)
    new = api.post("/ai/lease", key="k", ttl=60).json()["lease_id"]
    before = api.get("/ai/status", key="k").json()
    answer = api.post(path, key="k", lease_id=old, **extra)
    assert answer.status_code == 409
    assert answer.json() == {
        "detail": {
            "error": "lease_conflict",
            "reason": "not_owner",
            "message": "lease is held by another caller",
            "key": "k",
            "status": "in_progress",
            "version": 2,
        }
    }
    assert new not in answer.text
    assert api.get("/ai/status", key="k").json() | {"ttl_left": 0} == before | {"ttl_left": 0}
    assert api.post("/ai/complete", key="k", lease_id=new, result={"by": "new"}).status_code == 200
    assert api.post(path, key="k", lease_id=old, **extra).json()["detail"]["reason"] == "not_owner"
    assert api.get("/ai/result", key="k").json()["result"] == {"by": "new"}


def test_of_concurrent_takeovers_exactly_one_acquires(api: Api, clock: Clock) -> None:
    api.post("/ai/lease", key="k", ttl=10)
    clock.advance(11)
    answers = api.at_once(16, lambda _: api.post("/ai/lease", key="k", ttl=60))
    assert sorted(answer.json()["status"] for answer in answers) == ["acquired"] + ["polling"] * 15


@pytest.mark.parametrize(
    ("path", "extra", "status"),
    [("/ai/complete", {"result": {"n": 1}}, "completed"), ("/ai/fail", {"error_code": "e"}, "failed")],
)
def test_an_expired_lease_that_nobody_took_over_may_be_finished(
    api: Api, clock: Clock, path: str, extra: dict[str, Any], status: str
) -> None:
    """§2.9: accept for caller-owned leases."""
    lease_id = api.post("/ai/lease", key="k", ttl=60).json()["lease_id"]
    clock.advance(DAY_S)
    answer = api.post(path, key="k", lease_id=lease_id, **extra)
    assert (answer.status_code, answer.json()["status"]) == (200, status)


def test_an_expired_lease_that_nobody_took_over_may_be_extended(api: Api, clock: Clock) -> None:
    """§2.7"""
    lease_id = api.post("/ai/lease", key="k", ttl=60).json()["lease_id"]
    clock.advance(DAY_S)
    assert api.post("/ai/extend", key="k", lease_id=lease_id, ttl=60).status_code == 200
    assert api.post("/ai/lease", key="k").json()["status"] == "polling"


def test_extending_keeps_a_lease_for_ever_and_never_longer_than_ttl(api: Api, clock: Clock) -> None:
    """§3.4: no total limit on extensions; §2.7: it does not add."""
    lease_id = api.post("/ai/lease", key="k", ttl=60).json()["lease_id"]
    for _ in range(10):
        clock.advance(50)
        api.post("/ai/extend", key="k", lease_id=lease_id, ttl=60)
        assert api.post("/ai/lease", key="k").json()["status"] == "polling"
    clock.advance(61)
    assert api.post("/ai/lease", key="k").json()["status"] == "acquired"


def test_an_expired_lease_is_no_answer_to_another_fingerprint(api: Api, clock: Clock) -> None:
    api.post("/ai/lease", key="k", ttl=60, fingerprint="one")
    clock.advance(61)
    assert api.post("/ai/lease", key="k", fingerprint="two").status_code == 409
    assert api.post("/ai/lease", key="k", fingerprint="one").json()["status"] == "acquired"


# runs


def test_a_queued_run_waits_for_ever_and_its_ttl_does_not_run(api: Api, clock: Clock) -> None:
    """§2.3: the time limit is counted from each claim by a worker."""
    api.post("/ai/run", key="k", ttl=60)
    clock.advance(30 * DAY_S)
    assert api.get("/ai/status", key="k").json()["ttl_left"] == 60
    assert api.post("/ai/run", key="k").json()["status"] == "polling"
    claim = api.claim("k")
    assert (claim.deadline_at - claim.claimed_at).total_seconds() == 60


def test_a_run_whose_worker_died_stays_in_progress_and_is_not_charged_again(api: Api, clock: Clock) -> None:
    """§3.2: re-dispatched internally."""
    api.post("/ai/run", key="k", ttl=600)
    dead = api.claim("k", lease_s=15)
    clock.advance(16)
    for _ in range(2):
        assert api.get("/ai/status", key="k").json()["status"] == "in_progress"
        assert api.post("/ai/run", key="k").json()["charged"] == 0
        api.db.run(outbox.reap, 10, WEEK_S)
    api.work("k", {"by": "the next worker"})
    assert api.db.run(claims.complete, dead, {"by": "the dead one"}, WEEK_S) is claims.Ending.LOST
    assert api.get("/ai/result", key="k").json()["result"] == {"by": "the next worker"}
    assert api.usage("ai")["usage"] == 1


def test_a_running_run_past_its_time_limit_has_no_time_left(api: Api, clock: Clock) -> None:
    api.post("/ai/run", key="k", ttl=60)
    api.claim("k", lease_s=600)
    clock.advance(61)
    status = api.get("/ai/status", key="k").json()
    assert (status["status"], status["ttl_left"], status["retry_after_sec"]) == ("in_progress", 0, 1)


# retention


@pytest.mark.parametrize(
    ("finish", "extra"),
    [("/ai/complete", {"result": {"n": 1}}), ("/ai/fail", {"error_code": "e"}), ("/ai/cancel", {})],
)
def test_a_finished_lease_is_readable_for_7_days_and_then_unknown(
    api: Api, clock: Clock, finish: str, extra: dict[str, Any]
) -> None:
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    api.post(finish, key="k", lease_id=lease_id, **extra)
    clock.advance(WEEK_S - 30)
    for path in ("/ai/status", "/ai/result"):
        assert api.get(path, key="k").status_code == 200
    clock.advance(31)
    for path in ("/ai/status", "/ai/result"):
        assert api.get(path, key="k").status_code == 404
    assert api.post("/ai/extend", key="k", lease_id=lease_id).status_code == 404
    assert api.post(finish, key="k", lease_id=lease_id, **extra).status_code == 404


@pytest.mark.parametrize("error_code", [None, "boom"])
def test_after_retention_the_key_is_free_and_begins_anew(
    api: Api, clock: Clock, error_code: str | None
) -> None:
    """§3.2: none / retention over: version 1, charged."""
    first = api.post("/ai/run", key="k", ttl=600, fingerprint="one").json()
    api.work("k", {"n": 1}, error_code)
    clock.advance(WEEK_S - 30)
    assert api.post("/ai/run", key="k").json()["charged"] == 0
    clock.advance(31)
    again = api.post("/ai/run", key="k", ttl=60, fingerprint="two").json()
    assert (again["status"], again["version"], again["charged"], again["ttl"]) == ("acquired", 1, 1, 60)
    assert seconds_between(first["first_seen_at"], again["first_seen_at"]) >= WEEK_S
    assert (again["result_hash"], again["error_code"], again["done_at"]) == (None, None, None)
    assert api.get("/ai/result", key="k").json()["result"] is None
    api.work("k", {"n": 2})
    assert api.get("/ai/result", key="k").json()["result"] == {"n": 2}


# months and days


def test_a_new_month_starts_all_counters_at_0(api: Api, clock: Clock) -> None:
    """§2.16: UTC."""
    move_to(clock, "2031-01-31T23:50:00Z")
    for _ in range(2):
        api.post("/check-lock", key="k")
        api.post("/ai/lease", key="k")
    old = api.get("/usage/all")
    assert (old.json()["month"], old.headers["X-OnceOnly-Month"]) == ("2031-01", "2031-01")
    assert old.json()["make"]["usage"] == old.json()["ai"]["usage"] == 1

    clock.advance(1200)
    new = api.get("/usage/all")
    assert (new.json()["month"], new.headers["X-OnceOnly-Month"]) == ("2031-02", "2031-02")
    for kind in ("make", "ai"):
        counters = new.json()[kind]
        del counters["limit"]
        assert set(counters.values()) == {0}
    lease = api.post("/ai/lease", key="new")
    assert (lease.json()["usage"], lease.headers["X-OnceOnly-Month"]) == (1, "2031-02")
    assert api.post("/check-lock", key="new").headers["X-OnceOnly-Month"] == "2031-02"
    assert api.get("/me").json()["requests_total_all_time"] == 4 + 2


def test_months_are_utc_whatever_the_servers_time_zone(serve: Serve, clock: Clock, owner_url: str) -> None:
    engine = sa.create_engine(owner_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        name = sa.make_url(owner_url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone TO 'Pacific/Kiritimati'")
    api = serve()
    move_to(clock, "2031-01-31T12:00:00Z")  # there it is February
    lease = api.post("/ai/lease", key="k")
    assert lease.headers["X-OnceOnly-Month"] == "2031-01"
    assert lease.json()["first_seen_at"].startswith("2031-01-31T12:00:")
    assert api.post("/check-lock", key="k").headers["X-OnceOnly-Month"] == "2031-01"
    body = api.get("/usage/all").json()
    assert (body["month"], body["ai"]["usage"]) == ("2031-01", 1)
    (day,) = api.get("/metrics", from_day="2031-01-01", to_day="2031-02-28").json()["items"]
    assert day["day"] == "2031-01-31"


def test_a_used_up_free_plan_goes_on_in_the_next_month(serve: Serve, clock: Clock) -> None:
    api = serve(Plan.FREE)
    move_to(clock, "2031-12-31T23:50:00Z")
    api.use_up("make", 1000)
    api.use_up("ai", 3000)
    for path in ("/check-lock", "/ai/lease", "/ai/run"):
        assert api.post(path, key=path).status_code == 402
    clock.advance(1200)
    for path in ("/check-lock", "/ai/lease", "/ai/run"):
        assert api.post(path, key=path).status_code == 200
    assert api.usage("ai")["usage"] == 2


def test_metrics_put_each_request_on_its_utc_day(api: Api, clock: Clock) -> None:
    move_to(clock, "2031-02-27T23:50:00Z")
    first = api.post("/ai/lease", key="a")
    assert first.json()["first_seen_at"].startswith("2031-02-27T23:50:")
    clock.advance(1200)
    api.post("/ai/lease", key="a")
    clock.advance(2 * DAY_S)
    api.post("/check-lock", key="a")

    def days(from_day: str, to_day: str) -> dict[str, tuple[int, int]]:
        items = api.get("/metrics", from_day=from_day, to_day=to_day).json()["items"]
        return {item["day"]: (item["make"]["requests_total"], item["ai"]["requests_total"]) for item in items}

    assert days("2031-02-27", "2031-03-02") == {
        "2031-02-27": (0, 1),
        "2031-02-28": (0, 1),
        "2031-03-02": (1, 0),
    }
    assert list(days("2031-02-28", "2031-02-28")) == ["2031-02-28"]
    assert list(days("2031-02-28", "2031-03-01")) == ["2031-02-28"]
    month = api.get("/usage/all").json()
    assert (month["month"], month["ai"]["usage"], month["make"]["requests_total_month"]) == ("2031-03", 0, 1)


def test_timestamps_are_whole_utc_seconds(api: Api, clock: Clock) -> None:
    """§1.8"""
    move_to(clock, "2031-03-01T00:00:30Z")
    lease = api.post("/ai/lease", key="k").json()
    assert lease["first_seen_at"][:17] == "2031-03-01T00:00:"
    assert lease["first_seen_at"][-1] == "Z"
    assert len(lease["first_seen_at"]) == 20
    api.post("/events", run_id="k", type="note")
    ts = api.get("/runs/k").json()["events"][-1]["ts"]
    assert isinstance(ts, int)
    assert (
        timedelta(0)
        <= datetime.fromtimestamp(ts, UTC) - datetime(2031, 3, 1, 0, 0, 30, tzinfo=UTC)
        < timedelta(seconds=20)
    )
