"""Two tenants never see each other's keys, runs, events or usage (§1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.services import account
from onceonly_jobs.store.account import Caller

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

SECRET = "the-others-secret"


@pytest.fixture
def ours(new_tenant: NewApi) -> Api:
    return new_tenant()


@pytest.fixture
def theirs(new_tenant: NewApi) -> Api:
    """A tenant with one of everything, all of it under the key `k`, and SECRET in all of it."""
    api = new_tenant()
    api.post("/check-lock", key="k", metadata={"s": SECRET})
    api.post("/check-lock", key="k")
    lease_id = api.post("/ai/lease", key="k", metadata={"agent_id": SECRET}).json()["lease_id"]
    api.post("/events", run_id="k", type=SECRET, message=SECRET)
    api.post("/ai/complete", key="k", lease_id=lease_id, result={"s": SECRET})
    api.post("/ai/run", key="running")
    api.post("/me/notifications", email_notifications_enabled=False)
    return api


@pytest.mark.usefixtures("theirs")
def test_keys_are_free_for_each_tenant(ours: Api) -> None:
    assert ours.post("/check-lock", key="k").json()["status"] == "locked"
    lease = ours.post("/ai/lease", key="k").json()
    assert (lease["status"], lease["version"], lease["usage"]) == ("acquired", 1, 1)
    assert ours.post("/ai/run", key="running").json()["status"] == "acquired"


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("key", ["k", "running"])
@pytest.mark.parametrize("path", ["/ai/status", "/ai/result"])
def test_runs_of_another_tenant_are_not_found(ours: Api, path: str, key: str) -> None:
    assert ours.get(path, key=key).status_code == 404
    assert ours.get(path, key=key, wait=0.1).status_code == 404


def test_a_lease_id_of_another_tenant_gives_no_right(ours: Api, theirs: Api) -> None:
    lease_id = theirs.post("/ai/lease", key="held").json()["lease_id"]
    ours.post("/ai/lease", key="held")
    calls: dict[str, dict[str, Any]] = {
        "/ai/extend": {},
        "/ai/complete": {"result": {}},
        "/ai/fail": {"error_code": "e"},
        "/ai/cancel": {},
    }
    for path, extra in calls.items():
        answer = ours.post(path, key="held", lease_id=lease_id, **extra)
        assert (answer.status_code, answer.json()["detail"]["reason"]) == (409, "not_owner")
        assert ours.post(path, key="running", lease_id=lease_id, **extra).status_code == 404
    assert theirs.post("/ai/complete", key="held", lease_id=lease_id).status_code == 200


@pytest.mark.usefixtures("theirs")
def test_events_timelines_and_usage_of_another_tenant_are_not_seen(ours: Api) -> None:
    assert ours.get("/events").json() == []
    assert ours.get("/runs").json() == {"total": 0, "items": []}
    assert ours.get("/runs", q="k").json() == {"total": 0, "items": []}
    assert ours.get("/runs/k").json() == {"run_id": "k", "total": 0, "events": []}
    assert ours.get("/metrics", from_day="2020-01-01", to_day="2100-01-01").json()["items"] == []
    me = ours.get("/me").json()
    assert (me["requests_total_all_time"], me["email_notifications_enabled"]) == (0, True)
    for kind in ("make", "ai"):
        used = ours.usage(kind)
        del used["limit"]
        assert set(used.values()) == {0}


@pytest.mark.usefixtures("theirs")
def test_nothing_that_another_tenant_wrote_is_in_any_answer(ours: Api) -> None:
    ours.post("/events", run_id="k", type="note")
    ours.post("/ai/run", key="k")
    ours.post("/check-lock", key="k")
    paths = [
        "/me",
        "/usage",
        "/usage/all",
        "/events",
        "/runs",
        "/runs/k",
        "/ai/status?key=k",
        "/ai/result?key=k",
    ]
    assert not [path for path in paths if SECRET in ours.request("GET", path).text]
    assert ours.get("/runs/k").json()["total"] == 2


def test_a_waiter_is_not_answered_by_the_same_key_of_another_tenant(ours: Api, theirs: Api) -> None:
    ours.post("/ai/lease", key="same")
    lease_id = theirs.post("/ai/lease", key="same").json()["lease_id"]
    theirs.post("/ai/complete", key="same", lease_id=lease_id, result={"s": SECRET})
    assert ours.get("/ai/result", key="same", wait=0.2).json()["status"] == "in_progress"


def test_all_keys_of_one_tenant_share_one_namespace(ours: Api) -> None:
    second = ours.db.run(account.create_key, ours.tenant_id).api_key
    ours.post("/check-lock", key="k")
    answer = ours.request(
        "POST", "/check-lock", json={"key": "k"}, headers={"Authorization": f"Bearer {second}"}
    )
    assert answer.json()["status"] == "duplicate"
    caller: Caller = ours.db.run(account.authenticate, second)
    assert caller.tenant_id == ours.tenant_id
