"""GET /me, POST /me/notifications, GET /usage, /usage/all and /metrics (§2.15, §2.16, §2.20)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.domain.plans import Plan

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

ON = {
    "email_notifications_enabled": True,
    "tool_error_notifications_enabled": True,
    "run_failure_notifications_enabled": True,
}
NO_USE = {"usage": 0, "requests_total": 0, "blocked_total": 0, "charged_total": 0, "polling_total": 0}


def this_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def some_use(api: Api) -> None:
    """make: 3 requests, 1 duplicate; ai: 4 requests, 2 acquired, 1 polling, 1 completed."""
    for key in ("a", "a", "b"):
        api.post("/check-lock", key=key)
    lease_id = api.post("/ai/lease", key="a").json()["lease_id"]
    api.post("/ai/lease", key="a")
    api.post("/ai/complete", key="a", lease_id=lease_id)
    api.post("/ai/lease", key="a")
    api.post("/ai/run", key="b")


@pytest.mark.parametrize("plan", Plan)
def test_me_is_a_flat_object_of_the_account(new_tenant: NewApi, plan: Plan) -> None:
    api = new_tenant(plan)
    answer = api.get("/me")
    assert answer.status_code == 200
    assert answer.json() == {
        "plan": plan.value,
        "is_active": True,
        "key_preview": f"once_live_...{api.api_key[-4:]}",
        "current_period_end": None,
        "requests_total_all_time": 0,
        "blocked_total_all_time": 0,
        **ON,
    }


def test_me_counts_both_kinds_of_all_time(api: Api) -> None:
    some_use(api)
    assert api.get("/me").json()["requests_total_all_time"] == 3 + 4


@pytest.mark.parametrize("switch", ON)
def test_notifications_are_updated_partially(api: Api, switch: str) -> None:
    answer = api.post("/me/notifications", **{switch: False})
    assert answer.status_code == 200
    assert answer.json() == ON | {switch: False}
    assert {name: value for name, value in api.get("/me").json().items() if name in ON} == ON | {
        switch: False
    }


def test_notifications_are_upserts(api: Api) -> None:
    """§1.9: the same result for a replay."""
    off = dict.fromkeys(ON, False)
    assert [api.post("/me/notifications", **off).json() for _ in range(2)] == [off, off]
    back = {"email_notifications_enabled": True}
    assert api.post("/me/notifications", **back, tool_error_notifications_enabled=None).json() == off | back


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"unknown": True},
        {"email_notifications_enabled": None},
        *({s: "true"} for s in ON),
        {**ON, "email_notifications_enabled": 1},
    ],
)
def test_empty_or_non_boolean_notifications_are_invalid(api: Api, body: dict[str, Any]) -> None:
    assert api.request("POST", "/me/notifications", json=body).status_code == 422
    assert api.get("/me").json()["email_notifications_enabled"] is True


def test_usage_is_that_of_make_unless_asked(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.STARTER)
    some_use(api)
    make = {
        "plan": "starter",
        "month": this_month(),
        "usage": 1,
        "limit": 20_000,
        "requests_total_month": 3,
        "blocked_total_month": 0,
    }
    assert api.get("/usage").json() == make
    assert api.get("/usage", kind="make").json() == make
    assert api.get("/usage", kind="ai").json() == make | {
        "usage": 2,
        "limit": 100_000,
        "requests_total_month": 4,
    }


@pytest.mark.parametrize("kind", ["", "MAKE", "tools", "make,ai", " ai"])
def test_another_kind_of_usage_is_invalid(api: Api, kind: str) -> None:
    answer = api.get("/usage", kind=kind)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "kind"]


def test_usage_all_has_both_kinds_and_every_counter(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.STARTER)
    some_use(api)
    answer = api.get("/usage/all")
    assert answer.json() == {
        "plan": "starter",
        "month": this_month(),
        "make": {
            "usage": 1,
            "limit": 20_000,
            "requests_total_month": 3,
            "blocked_total_month": 0,
            "charged_total_month": 0,
            "polling_total_month": 0,
        },
        "ai": {
            "usage": 2,
            "limit": 100_000,
            "requests_total_month": 4,
            "blocked_total_month": 0,
            "charged_total_month": 2,
            "polling_total_month": 1,
        },
    }
    assert answer.headers["X-OnceOnly-Plan"] == "starter"
    assert answer.headers["X-OnceOnly-Month"] == this_month()
    assert answer.headers["X-Request-Id"]


def test_reading_the_account_is_not_metered(api: Api) -> None:
    for path in ("/me", "/usage", "/usage/all", "/events", "/runs", "/runs/x"):
        assert api.get(path).status_code == 200
    api.post("/events", run_id="r", type="note")
    assert api.get("/me").json()["requests_total_all_time"] == 0


def test_concurrent_requests_are_all_counted(api: Api) -> None:
    """Counters are spread over slots and summed on reading."""
    api.at_once(32, lambda n: api.post("/check-lock", key=f"k{n}"))
    api.at_once(32, lambda n: api.post("/ai/lease", key=f"k{n}"))
    assert api.usage("make")["requests_total_month"] == 32
    assert api.usage("ai")["usage"] == api.usage("ai")["charged_total_month"] == 32


def test_metrics_are_counters_per_day(api: Api) -> None:
    some_use(api)
    answer = api.get("/metrics", from_day=today(), to_day=today())
    assert answer.status_code == 200
    assert answer.json() == {
        "from_day": today(),
        "to_day": today(),
        "items": [
            {
                "day": today(),
                "make": NO_USE | {"usage": 1, "requests_total": 3},
                "ai": NO_USE | {"usage": 2, "requests_total": 4, "charged_total": 2, "polling_total": 1},
            }
        ],
    }


def test_metrics_of_a_kind_without_use_are_zeros(api: Api) -> None:
    api.post("/check-lock", key="k")
    (item,) = api.get("/metrics", from_day=today(), to_day=today()).json()["items"]
    assert item["ai"] == NO_USE


def test_metrics_of_days_without_use_are_empty(api: Api) -> None:
    some_use(api)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    answer = api.get("/metrics", from_day=tomorrow, to_day="9999-12-31")
    assert answer.json() == {"from_day": tomorrow, "to_day": "9999-12-31", "items": []}


@pytest.mark.parametrize(
    ("params", "culprit"),
    [
        ({}, "from_day"),
        ({"from_day": "2026-03-01"}, "to_day"),
        ({"to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "2026-03-02", "to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "2026-02-29", "to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "2026-03-01", "to_day": "2026-13-01"}, "to_day"),
        ({"from_day": "0000-01-01", "to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "20260301", "to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "2026-3-1", "to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "2026-W10-1", "to_day": "2026-03-01"}, "from_day"),
        ({"from_day": "2026-03-01T00:00:00Z", "to_day": "2026-03-01"}, "from_day"),
        (
            {"from_day": "\u0662\u0660\u0662\u0666-\u0660\u0663-\u0660\u0661", "to_day": "2026-03-01"},
            "from_day",
        ),
        ({"from_day": "", "to_day": "2026-03-01"}, "from_day"),
    ],
)
def test_missing_malformed_or_reversed_days_are_invalid(
    api: Api, params: dict[str, str], culprit: str
) -> None:
    answer = api.get("/metrics", **params)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", culprit]
