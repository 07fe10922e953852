"""What time does to locks and leases, seen through the published SDK: on a system whose clock the tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.clients import OUR_FACES, PUBLISHED_FACES, Face, Sdk, connected, until
from support.sdk_tenants import make_tenant

from onceonly_jobs.client import current_lease
from onceonly_jobs.client.exceptions import LeaseLost
from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock

pytestmark = pytest.mark.anyio

DAY_S = 86_400
REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("complete", {"result": {"by": "zombie"}}),
    ("fail", {"error_code": "zombie"}),
    ("extend", {"ttl": 60}),
    ("cancel", {}),
]


@pytest.fixture(scope="module")
def movable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """A system of this module's own: its time moves for all who use it."""
    data_dir = tmp_path_factory.mktemp("movable") / "data"
    with LocalSystem(data_dir=data_dir, port=0, flower=False, workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def time(movable: LocalSystem) -> Clock:
    return Clock(sqlalchemy_url(movable.variables["ONCEONLY_MIGRATION_DATABASE_URL"]))


@pytest.fixture
async def sdk(movable: LocalSystem, face: Face) -> AsyncIterator[Sdk]:
    accounts = Database(sqlalchemy_url(movable.database_url), pool_size=1)
    tenant = make_tenant(accounts)
    accounts.close()
    async with connected(movable.base_url, tenant.api_key, face) as client:
        yield client


async def test_lock_ends_its_ttl_after_the_first_call(sdk: Sdk, time: Clock, key: str) -> None:
    """A duplicate neither refreshes nor shortens it."""
    assert (await sdk.check_lock(key, ttl=30)).locked
    time.advance(20)
    first_seen_at = (await sdk.check_lock(key, ttl=600)).first_seen_at
    assert first_seen_at
    time.advance(11)
    again = await sdk.check_lock(key, ttl=20)
    assert (again.locked, again.ttl, again.first_seen_at) == (True, 20, None)
    assert (await sdk.check_lock(key, ttl=20)).first_seen_at > first_seen_at


async def test_shortest_ttl_is_ten_seconds(sdk: Sdk, time: Clock, key: str) -> None:
    assert (await sdk.check_lock(key, ttl=1)).ttl == 10
    time.advance(5)
    assert (await sdk.check_lock(key, ttl=1)).duplicate
    time.advance(6)
    assert (await sdk.check_lock(key, ttl=1)).locked


async def test_expired_lease_is_taken_over_and_the_zombie_refused(sdk: Sdk, time: Clock, key: str) -> None:
    zombie = await sdk.ai.lease(key, ttl=60)
    time.advance(61)
    expired = await sdk.ai.status(key)
    assert (expired.status, expired.ttl_left, expired.retry_after_sec) == ("in_progress", 0, 1)

    taker = await sdk.ai.lease(key, ttl=60)
    assert (taker["status"], taker["charged"], taker["usage"]) == ("acquired", 1, 2)
    assert taker["version"] == zombie["version"] + 1
    assert taker["lease_id"] not in (None, zombie["lease_id"])
    assert taker["first_seen_at"] == zombie["first_seen_at"]

    for method, options in REFUSALS:
        with pytest.raises(sdk.lib.ApiError) as caught:
            await getattr(sdk.ai, method)(key, zombie["lease_id"], **options)
        assert caught.value.status_code == 409, method
        assert caught.value.detail["error"] == "lease_conflict"
        assert caught.value.detail["reason"] == "not_owner"
        assert taker["lease_id"] not in str(caught.value.detail)
    assert (await sdk.ai.status(key)).version == taker["version"]

    await sdk.ai.complete(key, taker["lease_id"], result={"by": "taker"})
    for method, options in REFUSALS:
        with pytest.raises(sdk.lib.ApiError) as caught:
            await getattr(sdk.ai, method)(key, zombie["lease_id"], **options)
        assert (caught.value.status_code, caught.value.detail["reason"]) == (409, "not_owner")
    assert (await sdk.ai.result(key)).result == {"by": "taker"}


async def test_expired_lease_that_nobody_took_can_be_completed(sdk: Sdk, time: Clock, key: str) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    time.advance(3600)
    assert (await sdk.ai.complete(key, lease["lease_id"], result={"late": True}))["status"] == "completed"
    assert (await sdk.ai.result(key)).result == {"late": True}


async def test_expired_lease_that_nobody_took_can_be_extended(sdk: Sdk, time: Clock, key: str) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    time.advance(61)
    assert (await sdk.ai.extend(key, lease["lease_id"], ttl=60))["status"] == "extended"
    assert (await sdk.ai.lease(key, ttl=60))["status"] == "polling"


async def test_extended_lease_outlives_its_first_deadline(sdk: Sdk, time: Clock, key: str) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    for _ in range(3):
        time.advance(50)
        await sdk.ai.extend(key, lease["lease_id"], ttl=60)
    assert (await sdk.ai.lease(key, ttl=60))["status"] == "polling"
    time.advance(61)
    assert (await sdk.ai.lease(key, ttl=60))["status"] == "acquired"


async def test_waiters_look_less_often_at_an_old_lease(sdk: Sdk, time: Clock, key: str) -> None:
    await sdk.ai.lease(key, ttl=600)
    assert (await sdk.ai.status(key)).retry_after_sec == 1
    time.advance(11)
    assert (await sdk.ai.status(key)).retry_after_sec == 5


async def test_run_fn_takes_over_from_a_dead_process(sdk: Sdk, time: Clock, key: str) -> None:
    await sdk.ai.lease(key, ttl=60)
    time.advance(61)
    result = await sdk.ai.run_fn(key, sdk.native(_one), ttl=60)
    assert (result.status, result.result) == ("completed", {"n": 1})


async def _one() -> dict[str, int]:
    return {"n": 1}


@pytest.mark.parametrize("face", PUBLISHED_FACES, ids=str)
async def test_run_fn_that_lost_its_lease_is_told_so(sdk: Sdk, time: Clock, key: str) -> None:
    """Its result is not stored, and the fail that the SDK then sends changes nothing either."""

    @sdk.native
    async def work() -> dict[str, str]:
        while (await sdk.ai.status(key)).version < 2:  # after the first heartbeat no other comes for 30 s
            pass
        time.advance(61)
        taker = await sdk.ai.lease(key, ttl=60)
        assert taker["status"] == "acquired"
        await sdk.ai.complete(key, taker["lease_id"], result={"by": "taker"})
        return {"by": "zombie"}

    with pytest.raises(sdk.lib.ApiError) as caught:
        await sdk.ai.run_fn(key, work, ttl=60)
    assert (caught.value.status_code, caught.value.detail["reason"]) == (409, "not_owner")
    assert [call for call in sdk.calls if call[1] in ("/ai/complete", "/ai/fail")] == [
        ("POST", "/ai/complete", 200),
        ("POST", "/ai/complete", 409),
        ("POST", "/ai/fail", 409),
    ]
    assert (await sdk.ai.result(key)).result == {"by": "taker"}


@pytest.mark.parametrize("face", OUR_FACES, ids=str)
async def test_running_function_is_told_that_its_lease_is_lost(sdk: Sdk, time: Clock, key: str) -> None:
    """The next heartbeat notices: a function that looks sees it, a coroutine is cancelled."""
    seen = []

    @sdk.native
    async def work() -> dict[str, str]:
        while (await sdk.ai.lease(key, ttl=60))["status"] != "acquired":
            time.advance(61)  # unless a heartbeat came in between
        lease = current_lease()
        assert lease is not None
        try:
            await until(lambda: _true(lease.lost), "the heartbeat notices")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        seen.append("told")
        return {"by": "zombie"}

    with pytest.raises(LeaseLost) as caught:
        await sdk.ai.run_fn(key, work, ttl=60, extend_every=0.05)
    assert (caught.value.status_code, caught.value.detail["reason"]) == (409, "not_owner")
    assert seen == ["told" if sdk.mode == "sync" else "cancelled"]
    assert "/ai/fail" not in sdk.calls.asked
    assert (await sdk.ai.status(key)).status == "in_progress", "the taker's"


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("face", OUR_FACES, ids=str)
async def test_result_of_a_lost_lease_is_refused(sdk: Sdk, time: Clock, key: str) -> None:
    """Even where no heartbeat came to notice it."""

    @sdk.native
    async def work() -> dict[str, str]:
        time.advance(61)
        assert (await sdk.ai.lease(key, ttl=60))["status"] == "acquired"
        return {"by": "zombie"}

    with pytest.raises(LeaseLost):
        await sdk.ai.run_fn(key, work, ttl=60)
    assert sdk.calls.asked[-1] == "/ai/complete"
    assert (await sdk.ai.status(key)).status == "in_progress"


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_outcome_is_kept_for_seven_days(sdk: Sdk, time: Clock, key: str, outcome: str) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    if outcome == "completed":
        await sdk.ai.complete(key, lease["lease_id"], result={"n": 1})
    else:
        await sdk.ai.fail(key, lease["lease_id"], error_code="broken")
    time.advance(7 * DAY_S - 3600)
    assert (await sdk.ai.lease(key, ttl=60))["status"] == outcome
    assert (await sdk.ai.result(key)).status == outcome
    time.advance(7200)
    with pytest.raises(sdk.lib.ApiError) as caught:
        await sdk.ai.result(key)
    assert caught.value.status_code == 404
    again = await sdk.ai.lease(key, ttl=60)
    assert (again["status"], again["version"]) == ("acquired", 1)


async def test_runs_go_on_after_time_has_passed(sdk: Sdk, time: Clock, key: str) -> None:
    assert (await sdk.ai.run_and_wait(f"{key}:before", timeout=30)).status == "completed"
    time.advance(7 * DAY_S + 3600)
    assert (await sdk.ai.run_and_wait(f"{key}:before", timeout=30)).status == "completed"
    timeline = await sdk.get_run_timeline(f"{key}:before")
    assert [event["type"] for event in timeline["events"]].count("run_started") == 2
