"""Refusals become the published SDK's own exceptions, and any spelling of the base URL reaches the system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from support.clients import Face, Sdk, connected
from support.sdk_tenants import NewTenant, Tenant

from onceonly_jobs.domain.plans import LIMITS, Kind, Plan
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.services import account
from onceonly_jobs.store import usage
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.statement import Operation

pytestmark = pytest.mark.anyio

Call = Callable[[Sdk, str], Awaitable[Any]]

EVERY_CALL: dict[str, Call] = {
    "check_lock": lambda sdk, key: sdk.check_lock(key, ttl=60),
    "run": lambda sdk, key: sdk.ai.run(key),
    "run_fn": lambda sdk, key: sdk.ai.run_fn(key, lambda: pytest.fail("must not run")),
    "lease": lambda sdk, key: sdk.ai.lease(key),
    "status": lambda sdk, key: sdk.ai.status(key),
    "result": lambda sdk, key: sdk.ai.result(key),
    "extend": lambda sdk, key: sdk.ai.extend(key, "l"),
    "complete": lambda sdk, key: sdk.ai.complete(key, "l"),
    "fail": lambda sdk, key: sdk.ai.fail(key, "l", error_code="e"),
    "cancel": lambda sdk, key: sdk.ai.cancel(key, "l"),
    "me": lambda sdk, key: sdk.me(),
    "notifications": lambda sdk, key: sdk.update_notifications(email_notifications_enabled=False),
    "usage": lambda sdk, key: sdk.usage(),
    "usage_all": lambda sdk, key: sdk.usage_all(),
    "events": lambda sdk, key: sdk.events(),
    "post_event": lambda sdk, key: sdk.post_event(run_id=key, type="note"),
    "timeline": lambda sdk, key: sdk.get_run_timeline(key),
    "metrics": lambda sdk, key: sdk.metrics("2026-01-01", "2026-01-02"),
}


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_unknown_key_is_unauthorized(system: LocalSystem, face: Face, key: str, call: Call) -> None:
    async with connected(system.base_url, "once_live_nobody", face) as stranger:
        with pytest.raises(stranger.lib.UnauthorizedError) as caught:
            await call(stranger, key)
        assert str(caught.value) == "Invalid API key"


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_missing_key_is_unauthorized(system: LocalSystem, face: Face, key: str, call: Call) -> None:
    async with httpx.AsyncClient(base_url=system.base_url) as bare_async:
        with httpx.Client(base_url=system.base_url) as bare:
            async with connected(
                system.base_url, "", face, sync_client=bare, async_client=bare_async
            ) as nameless:
                with pytest.raises(nameless.lib.UnauthorizedError) as caught:
                    await call(nameless, key)
                assert str(caught.value) == "Missing Authorization Bearer token"


async def test_disabled_key_is_unauthorized(sdk: Sdk, key: str, tenant: Tenant, accounts: Database) -> None:
    assert (await sdk.check_lock(key, ttl=60)).locked
    assert accounts.run(account.revoke_key, tenant.key_id)
    for call in (EVERY_CALL["check_lock"], EVERY_CALL["me"], EVERY_CALL["run"]):
        with pytest.raises(sdk.lib.UnauthorizedError) as caught:
            await call(sdk, key)
        assert str(caught.value) == "API key disabled"


@pytest.mark.parametrize(
    "call",
    [
        lambda sdk, key: sdk.check_lock("", ttl=60),
        lambda sdk, key: sdk.check_lock("k" * 257, ttl=60),
        lambda sdk, key: sdk.check_lock("nul \0", ttl=60),
        lambda sdk, key: sdk.check_lock(key, ttl=0),
        lambda sdk, key: sdk.check_lock(key, ttl=-1),
        lambda sdk, key: sdk.check_lock(key, ttl=60, meta={"text": "x" * 2048}),
        lambda sdk, key: sdk.ai.run(""),
        lambda sdk, key: sdk.ai.run(key, ttl=0),
        lambda sdk, key: sdk.ai.run(key, metadata={"text": "x" * 70_000}),
        lambda sdk, key: sdk.ai.lease("k" * 257),
        lambda sdk, key: sdk.ai.complete(key, ""),
        lambda sdk, key: sdk.ai.fail(key, "l", error_code=""),
        lambda sdk, key: sdk.usage("nonsense"),
        lambda sdk, key: sdk.events(limit=0),
        lambda sdk, key: sdk.events(limit=501),
        lambda sdk, key: sdk.get_run_timeline(key, limit=2001),
        lambda sdk, key: sdk.metrics("2026-01-02", "2026-01-01"),
        lambda sdk, key: sdk.metrics("yesterday", "today"),
        lambda sdk, key: sdk.post_event(run_id=" ", type="note"),
    ],
)
async def test_bad_requests_are_validation_errors(sdk: Sdk, key: str, call: Call) -> None:
    with pytest.raises(sdk.lib.ValidationError, match=r'^Validation Error: \{"detail":\s?\['):
        await call(sdk, key)
    assert (await sdk.me())["requests_total_all_time"] == 0, "what is refused is not metered"


async def test_refusals_carry_status_and_detail(sdk: Sdk, key: str) -> None:
    with pytest.raises(sdk.lib.ApiError, match="not_found") as caught:
        await sdk.ai.status(key)
    assert caught.value.status_code == 404
    assert caught.value.detail["key"] == key
    await sdk.ai.lease(key)
    with pytest.raises(sdk.lib.ApiError, match="lease_conflict") as caught:
        await sdk.ai.complete(key, "lease_of_nobody")
    assert caught.value.status_code == 409
    assert caught.value.detail["message"]


def _use_up(tenant_id: str, kind: Kind, units: int) -> Operation[None]:
    yield from usage.lock_cap(tenant_id, kind)
    for _ in range(units):
        yield from usage.raise_cap(tenant_id, kind)


async def test_free_plan_ends_at_its_limit(
    system: LocalSystem, new_tenant: NewTenant, accounts: Database, face: Face, key: str
) -> None:
    free = new_tenant(Plan.FREE)
    accounts.run(_use_up, free.id, Kind.MAKE, LIMITS[Plan.FREE].make_per_month)
    accounts.run(_use_up, free.id, Kind.AI, LIMITS[Plan.FREE].ai_per_month - 1)
    async with connected(system.base_url, free.api_key, face) as sdk:
        assert (await sdk.me())["plan"] == "free"
        assert (await sdk.ai.lease(f"{key}:last"))["status"] == "acquired"
        for kind, limit, call in (("make", 1000, EVERY_CALL["check_lock"]), ("ai", 3000, EVERY_CALL["run"])):
            words = "Usage limit reached" if sdk.lib.published else f"{limit} of {limit} {kind} this month"
            with pytest.raises(sdk.lib.OverLimitError, match=words) as caught:
                await call(sdk, key)
            assert caught.value.detail["error"] == "payment_required"
            assert (caught.value.detail["plan"], caught.value.detail["limit"]) == ("free", limit)
            assert (await sdk.usage_all())[kind]["blocked_total_month"] == 1
        assert (await sdk.ai.lease(f"{key}:last"))["status"] == "polling", "attaching stays free"


async def test_rate_limit_says_when_to_come_back(
    system: LocalSystem, new_tenant: NewTenant, face: Face, key: str
) -> None:
    limited = new_tenant(rate_limit="2/minute")
    async with connected(system.base_url, limited.api_key, face) as sdk:
        for _ in range(2):
            await sdk.me()
        for call in (sdk.me, lambda: sdk.check_lock(key, ttl=60), lambda: sdk.ai.run(key)):
            with pytest.raises(sdk.lib.RateLimitError) as caught:
                await call()
            assert 1 <= caught.value.retry_after_sec <= 60


async def test_retrying_client_gets_through_a_rate_limit(
    system: LocalSystem, new_tenant: NewTenant, face: Face, key: str
) -> None:
    limited = new_tenant(rate_limit="2/second")
    async with connected(system.base_url, limited.api_key, face, max_retries_429=5) as sdk:
        results = [await sdk.check_lock(f"{key}:{n}", ttl=60) for n in range(4)]
        assert all(result.locked for result in results)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_base_url_is_taken_with_and_without_v1(
    system: LocalSystem, face: Face, key: str, path: str
) -> None:
    origin = system.base_url.removesuffix("/v1")
    async with connected(origin + path, system.api_key, face) as sdk:
        assert (await sdk.me())["plan"] == "agency"
        assert (await sdk.check_lock(key, ttl=60)).locked
        assert (await sdk.ai.lease(key, ttl=60))["status"] == "acquired"
        assert (await sdk.ai.status(key)).status == "in_progress"
