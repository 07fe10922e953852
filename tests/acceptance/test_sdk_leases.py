"""The published SDK's leases, run_fn and @idempotent_ai against a running system, sync and async."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel
from support.clients import Face, Sdk, connected, until
from support.sdk_tenants import Tenant

from onceonly_jobs.local.subprocess_system import LocalSystem

pytestmark = pytest.mark.anyio

LEASE_FIELDS = {
    *("ok", "status", "key", "ttl", "ttl_left", "lease_id", "version", "first_seen_at", "done_at"),
    *("result_hash", "error_code", "retry_after_sec", "usage", "limit", "charged"),
}


async def refused(sdk: Sdk, method: str, key: str, lease_id: str, reason: str, **options: Any) -> Any:
    """The 409 that a call of a lease's holder gets."""
    with pytest.raises(sdk.lib.ApiError) as caught:
        await getattr(sdk.ai, method)(key, lease_id, **options)
    assert caught.value.status_code == 409
    assert caught.value.detail["error"] == "lease_conflict"
    assert caught.value.detail["reason"] == reason
    return caught.value


async def test_first_caller_acquires_and_the_next_polls(sdk: Sdk, key: str) -> None:
    mine = await sdk.ai.lease(key, ttl=120, metadata={"step": "charge"})
    assert set(mine) == LEASE_FIELDS
    assert (mine["ok"], mine["status"], mine["key"], mine["ttl"]) == (True, "acquired", key, 120)
    assert isinstance(mine["lease_id"], str)
    assert mine["lease_id"].startswith("lease_")
    assert (mine["version"], mine["usage"], mine["charged"]) == (1, 1, 1)
    assert (mine["ttl_left"], mine["retry_after_sec"], mine["done_at"]) == (None, None, None)

    theirs = await sdk.ai.lease(key, ttl=5)
    assert set(theirs) == LEASE_FIELDS
    assert (theirs["ok"], theirs["status"], theirs["ttl"]) == (True, "polling", 120)
    assert theirs["lease_id"] is None
    assert 110 <= theirs["ttl_left"] <= 120
    assert theirs["retry_after_sec"] in (1, 5)
    assert theirs["first_seen_at"] == mine["first_seen_at"]
    assert (theirs["usage"], theirs["charged"]) == (1, 0)

    seen = await sdk.ai.status(key)
    assert isinstance(seen, sdk.lib.AiStatus)
    assert (seen.ok, seen.status, seen.lease_id) == (True, "in_progress", None)
    assert mine["lease_id"] not in str(theirs)


async def test_one_of_32_concurrent_calls_acquires(sdk: Sdk, key: str) -> None:
    leases = await asyncio.gather(*(sdk.ai.lease(key, ttl=60) for _ in range(32)))
    assert Counter(lease["status"] for lease in leases) == {"acquired": 1, "polling": 31}
    assert sum(lease["charged"] for lease in leases) == 1
    assert len([lease for lease in leases if lease["lease_id"]]) == 1


async def test_extend_sets_the_deadline(sdk: Sdk, key: str) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    extended = await sdk.ai.extend(key, lease["lease_id"], ttl=600)
    assert extended == {"ok": True, "status": "extended", "key": key, "ttl": 600, "version": 2}
    assert 590 <= (await sdk.ai.status(key)).ttl_left <= 600
    again = await sdk.ai.extend(key, lease["lease_id"])
    assert (again["ttl"], again["version"]) == (600, 3)
    assert 590 <= (await sdk.ai.status(key)).ttl_left <= 600


async def test_completed_work_is_answered_from_its_result(sdk: Sdk, key: str) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    done = await sdk.ai.complete(
        key, lease["lease_id"], result={"total": 7, "tags": ["ż", None]}, result_hash="h1"
    )
    assert (done["ok"], done["status"], done["result_hash"]) == (True, "completed", "h1")
    assert done["version"] > lease["version"]

    result = await sdk.ai.result(key)
    assert isinstance(result, sdk.lib.AiResult)
    assert result == sdk.lib.AiResult(
        ok=True,
        status="completed",
        key=key,
        result={"total": 7, "tags": ["ż", None]},
        result_hash="h1",
        done_at=done["done_at"],
    )
    status = await sdk.ai.status(key)
    assert (status.ok, status.status, status.done_at, status.ttl_left) == (
        True,
        "completed",
        done["done_at"],
        None,
    )
    assert status.retry_after_sec is None

    later = await sdk.ai.lease(key, ttl=60)
    assert (later["ok"], later["status"], later["lease_id"], later["charged"]) == (True, "completed", None, 0)
    assert later["result"] == {"total": 7, "tags": ["ż", None]}


async def test_completing_twice_keeps_the_first_result(sdk: Sdk, key: str) -> None:
    lease_id = (await sdk.ai.lease(key, ttl=60))["lease_id"]
    first = await sdk.ai.complete(key, lease_id, result={"n": 1})
    assert await sdk.ai.complete(key, lease_id, result={"n": 2}) == first
    assert (await sdk.ai.result(key)).result == {"n": 1}


async def test_completing_without_a_result(sdk: Sdk, key: str) -> None:
    lease_id = (await sdk.ai.lease(key, ttl=60))["lease_id"]
    await sdk.ai.complete(key, lease_id)
    result = await sdk.ai.result(key)
    assert (result.ok, result.status, result.result) == (True, "completed", None)


async def test_fail_after_complete_keeps_the_result(sdk: Sdk, key: str) -> None:
    """The SDK does this itself when the answer to its complete call got lost."""
    lease_id = (await sdk.ai.lease(key, ttl=60))["lease_id"]
    await sdk.ai.complete(key, lease_id, result={"n": 1})
    await refused(sdk, "fail", key, lease_id, "finished", error_code="too_late")
    assert (await sdk.ai.result(key)).result == {"n": 1}


async def test_failure_is_sticky(sdk: Sdk, key: str) -> None:
    lease_id = (await sdk.ai.lease(key, ttl=60))["lease_id"]
    failed = await sdk.ai.fail(key, lease_id, error_code="charge_failed", error_hash="e1")
    assert (failed["ok"], failed["status"], failed["error_code"]) == (True, "failed", "charge_failed")
    assert await sdk.ai.fail(key, lease_id, error_code="another") == failed
    await refused(sdk, "complete", key, lease_id, "finished", result={})

    later = await sdk.ai.lease(key, ttl=60)
    assert (later["ok"], later["status"], later["error_code"]) == (False, "failed", "charge_failed")
    assert (later["lease_id"], later["charged"]) == (None, 0)
    assert await sdk.ai.result(key) == sdk.lib.AiResult(
        ok=False, status="failed", key=key, error_code="charge_failed", done_at=failed["done_at"]
    )


async def test_cancelled_key_can_be_acquired_again(sdk: Sdk, key: str) -> None:
    first = await sdk.ai.lease(key, ttl=60)
    cancelled = await sdk.ai.cancel(key, first["lease_id"], reason="not needed")
    assert (cancelled["ok"], cancelled["status"]) == (True, "cancelled")
    assert cancelled["version"] > first["version"]
    assert await sdk.ai.cancel(key, first["lease_id"]) == cancelled
    gone = await sdk.ai.wait(key, timeout=0)
    assert (gone.ok, gone.status, gone.error_code) == (False, "failed", "cancelled")

    second = await sdk.ai.lease(key, ttl=60)
    assert (second["status"], second["charged"], second["usage"]) == ("acquired", 1, 2)
    assert second["version"] > cancelled["version"]
    assert second["lease_id"] not in (None, first["lease_id"])
    await refused(sdk, "complete", key, first["lease_id"], "not_owner", result={})
    await sdk.ai.complete(key, second["lease_id"], result={"n": 2})
    assert (await sdk.ai.result(key)).result == {"n": 2}


@pytest.mark.parametrize(
    ("method", "options"), [("extend", {}), ("complete", {}), ("fail", {"error_code": "e"}), ("cancel", {})]
)
async def test_strangers_are_refused(sdk: Sdk, key: str, method: str, options: dict[str, Any]) -> None:
    lease = await sdk.ai.lease(key, ttl=60)
    error = await refused(sdk, method, key, "lease_of_nobody", "not_owner", **options)
    assert error.detail["key"] == key
    assert lease["lease_id"] not in str(error.detail)
    assert (await sdk.ai.status(key)).version == lease["version"]
    with pytest.raises(sdk.lib.ApiError) as caught:
        await getattr(sdk.ai, method)(f"{key}:unknown", "lease_of_nobody", **options)
    assert (caught.value.status_code, caught.value.detail["error"]) == (404, "not_found")


async def test_waiting_for_anothers_lease_gives_its_result(sdk: Sdk, key: str) -> None:
    lease_id = (await sdk.ai.lease(key, ttl=60))["lease_id"]
    assert (await sdk.ai.status(key)).retry_after_sec == 1, "a young lease is asked about every second"
    waiting = asyncio.create_task(sdk.ai.wait(key, timeout=30, poll_min=0.1))
    looks, enough = ("/ai/status", 2) if sdk.lib.published else ("/ai/result", 1)
    await until(lambda: _true(sdk.calls.asked.count(looks) >= enough), "the waiter asks")
    await sdk.ai.complete(key, lease_id, result={"n": 1})
    asked = sdk.calls.asked.count(looks)
    result = await waiting
    assert (result.status, result.result) == ("completed", {"n": 1})
    assert sdk.calls.asked.count(looks) <= asked + 2, "the first look after the end must end the waiting"
    if not sdk.lib.published:
        assert sdk.calls.asked.count(looks) == 1, "one long poll is all it takes"


async def _true(value: bool) -> bool:
    return value


async def test_waiting_has_an_end(sdk: Sdk, key: str) -> None:
    await sdk.ai.lease(key, ttl=60)
    result = await sdk.ai.wait(key, timeout=0)
    assert result == sdk.lib.AiResult(ok=False, status="failed", key=key, error_code="timeout")
    assert (await sdk.ai.status(key)).status == "in_progress"


class Report(BaseModel):
    total: int
    lines: list[str] = []


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("returned", "stored"),
    [
        ({"total": 7}, {"total": 7}),
        (Report(total=7, lines=["ż"]), {"total": 7, "lines": ["ż"]}),
        (Point(7), {"x": 7}),
        (None, None),
        ("done", {"value": "done"}),
        ([7], {"value": "[7]"}),
    ],
    ids=repr,
)
async def test_run_fn_runs_once_and_keeps_what_it_returned(
    sdk: Sdk, key: str, returned: object, stored: dict[str, Any] | None
) -> None:
    ran = []

    @sdk.native
    async def work() -> object:
        ran.append(key)
        return returned

    first = await sdk.ai.run_fn(key, work, ttl=60)
    assert isinstance(first, sdk.lib.AiResult)
    assert (first.ok, first.status, first.key, first.result) == (True, "completed", key, stored)
    assert await sdk.ai.run_fn(key, work, ttl=60) == first
    assert ran == [key]
    usage = await sdk.usage("ai")
    assert (usage["usage"], usage["requests_total_month"]) == (1, 2)


async def test_run_fn_records_the_failure_and_raises_it(sdk: Sdk, key: str) -> None:
    ran = []

    @sdk.native
    async def work() -> None:
        ran.append(key)
        raise ValueError("no such customer")

    with pytest.raises(ValueError, match="no such customer"):
        await sdk.ai.run_fn(key, work, ttl=60, error_code="customer_error")
    failed = await sdk.ai.run_fn(key, work, ttl=60)
    assert (failed.ok, failed.status, failed.error_code, failed.result) == (
        False,
        "failed",
        "customer_error",
        None,
    )
    assert ran == [key]


async def test_run_fn_extends_its_lease(sdk: Sdk, key: str) -> None:
    """The published SDK's first heartbeat does not wait for its interval."""
    versions = []
    often = {} if sdk.lib.published else {"extend_every": 0.05}

    @sdk.native
    async def work() -> str:
        async def extended() -> bool:
            versions.append((await sdk.ai.status(key)).version)
            return versions[-1] >= 2

        await until(extended, "the lease is extended while the function runs")
        return "done"

    assert (await sdk.ai.run_fn(key, work, ttl=60, **often)).ok
    assert not sdk.lib.published or set(versions) <= {1, 2}
    assert ("POST", "/ai/extend", 200) in sdk.calls


async def test_concurrent_run_fn_runs_once_and_all_get_its_result(sdk: Sdk, key: str) -> None:
    ran = []

    @sdk.native
    async def work() -> dict[str, int]:
        ran.append(key)

        async def all_came() -> bool:
            return bool((await sdk.usage_all())["ai"]["polling_total_month"] == 7)

        await until(all_came, "the seven others are told to poll")
        return {"n": len(ran)}

    results = await asyncio.gather(*(sdk.ai.run_fn(key, work, ttl=60) for _ in range(8)))
    assert ran == [key]
    assert [result.result for result in results] == [{"n": 1}] * 8
    assert len(set(map(str, results))) == 1
    assert (await sdk.usage("ai"))["usage"] == 1


async def test_async_run_fn_stores_its_result_though_it_cancels_its_caller(
    system: LocalSystem, tenant: Tenant, key: str
) -> None:
    """What the other tests work around, as it is: the SDK's own doing, after the server took the result."""
    async with connected(system.base_url, tenant.api_key, Face("async")) as sdk:
        with pytest.raises(asyncio.CancelledError):
            await sdk.client.ai.run_fn_async(key, lambda: {"n": 1}, ttl=60)
        assert ("POST", "/ai/complete", 200) in sdk.calls
        again = await sdk.client.ai.run_fn_async(key, lambda: pytest.fail("must not run"), ttl=60)
        assert (again.status, again.result) == ("completed", {"n": 1})


async def test_run_fn_need_not_wait(sdk: Sdk, key: str) -> None:
    await sdk.ai.lease(key, ttl=60)
    result = await sdk.ai.run_fn(key, lambda: pytest.fail("must not run"), wait_on_conflict=False)
    assert result == sdk.lib.AiResult(ok=False, status="polling", key=key, error_code="not_acquired")


async def test_decorated_function_runs_once_per_key(sdk: Sdk, key: str) -> None:
    ran = []

    def key_of(report: Report) -> str:
        return f"{key}:{report.total}"

    @sdk.lib.idempotent_ai(sdk.client, key_fn=key_of, ttl=60, metadata_fn=lambda report: report)
    @sdk.native
    async def decorated(report: Report) -> Report:
        ran.append(report.total)
        return Report(total=report.total + 1, lines=["grown"])

    grow = sdk.awaited_ai(decorated, key_of)
    first = await grow(Report(total=1))
    assert isinstance(first, sdk.lib.AiResult)
    assert (first.status, first.result) == ("completed", {"total": 2, "lines": ["grown"]})
    assert await grow(Report(total=1, lines=["ignored"])) == first
    assert (await grow(Report(total=5))).result == {"total": 6, "lines": ["grown"]}
    assert ran == [1, 5]


async def test_decorated_function_under_one_fixed_key(sdk: Sdk, key: str) -> None:
    ran = []

    @sdk.lib.idempotent_ai(
        sdk.client, key=key, ttl=60, metadata={"run_id": f"{key}:timeline"}, error_code="broken"
    )
    @sdk.native
    async def decorated(fine: bool) -> None:
        ran.append(fine)
        if not fine:
            raise RuntimeError("broken")

    work = sdk.awaited_ai(decorated, lambda fine: key)
    with pytest.raises(RuntimeError):
        await work(False)
    assert (await work(True)).error_code == "broken"
    assert ran == [False]
    timeline = await sdk.get_run_timeline(f"{key}:timeline")
    assert (timeline["events"][-1]["type"], timeline["events"][-1]["status"]) == ("run_finished", "failed")
