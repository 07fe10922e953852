"""The published SDK's check_lock and @idempotent against a running system, sync and async."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel
from support.clients import Face, Sdk, connected
from support.sdk_parts import api
from support.sdk_tenants import Tenant

from onceonly_jobs.local.subprocess_system import LocalSystem

UTC_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

pytestmark = pytest.mark.anyio


def test_the_sdk_is_the_published_one() -> None:
    """Every file of it has the hash that the package index's wheel lists."""
    published = importlib.metadata.distribution("onceonly-sdk")
    assert published.version == "3.0.5"
    hashed = [file for file in published.files or [] if file.hash is not None and file.suffix == ".py"]
    assert len(hashed) >= 10
    for file in hashed:
        digest = hashlib.sha256(file.read_binary()).digest()
        assert file.hash.value == base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), file


async def test_first_call_locks_and_the_next_is_a_duplicate(sdk: Sdk, key: str) -> None:
    first = await sdk.check_lock(key, ttl=60)
    assert isinstance(first, sdk.lib.CheckLockResult)
    assert (first.locked, first.duplicate, first.key, first.ttl) == (True, False, key, 60)
    assert first.first_seen_at is None
    assert first.status_code == 200
    assert first.should_proceed()

    again = await sdk.check_lock(key, ttl=600)
    assert (again.locked, again.duplicate, again.key, again.ttl) == (False, True, key, 60)
    assert UTC_SECONDS.fullmatch(again.first_seen_at)
    assert again.is_duplicate()
    assert not again.should_proceed()
    assert (await sdk.check_lock(key)).first_seen_at == again.first_seen_at


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 86_400), (1, 10), (10, 10), (3600, 3600), (10**9, 2_592_000)]
)
async def test_ttl_is_the_plans_own_or_clamped_to_it(
    sdk: Sdk, key: str, asked: int | None, granted: int
) -> None:
    assert (await sdk.check_lock(key, ttl=asked)).ttl == granted


async def test_request_id_comes_back(sdk: Sdk, key: str) -> None:
    assert (await sdk.check_lock(key, ttl=60, request_id="req-7f3a")).request_id == "req-7f3a"
    assert (await sdk.check_lock(key, ttl=60)).request_id


class Order(BaseModel):
    id: int
    note: str = ""


@dataclasses.dataclass
class Item:
    sku: str


@pytest.mark.parametrize(
    "meta", [{"order": 7, "note": "żółw"}, Order(id=7), Item("a"), "text", 7, ["a"]], ids=repr
)
async def test_any_metadata_is_taken(sdk: Sdk, key: str, meta: object) -> None:
    assert (await sdk.check_lock(key, ttl=60, meta=meta)).locked
    assert (await sdk.check_lock(key, ttl=60, meta={"other": True})).duplicate


@pytest.mark.parametrize("suffix", [" with space", "/with/slash", "?a=b&c=#d", ":żółw 🐢", "%2F"])
async def test_keys_are_taken_as_they_are(sdk: Sdk, key: str, suffix: str) -> None:
    first = await sdk.check_lock(key + suffix, ttl=60)
    assert first.locked
    assert first.key == key + suffix
    assert (await sdk.check_lock(key, ttl=60)).locked
    assert (await sdk.check_lock(key + suffix, ttl=60)).duplicate


async def test_one_of_32_concurrent_calls_locks(sdk: Sdk, key: str) -> None:
    results = await asyncio.gather(*(sdk.check_lock(key, ttl=60) for _ in range(32)))
    assert sum(result.locked for result in results) == 1
    assert sum(result.duplicate for result in results) == 31
    assert len({result.first_seen_at for result in results if result.duplicate}) == 1
    usage = await sdk.usage("make")
    assert (usage["usage"], usage["requests_total_month"]) == (31, 32)


async def test_a_duplicate_may_be_a_409(
    system: LocalSystem, tenant: Tenant, face: Face, key: str, tmp_path: Path
) -> None:
    """The status of duplicates is a setting of the API; the SDK reads either."""
    with api(system.variables | {"ONCEONLY_DUPLICATE_STATUS_CODE": "409"}, tmp_path) as base_url:
        async with connected(base_url, tenant.api_key, face) as sdk:
            assert (await sdk.check_lock(key, ttl=60)).locked
            again = await sdk.check_lock(key, ttl=60)
            assert (again.locked, again.duplicate, again.status_code) == (False, True, 409)
            assert UTC_SECONDS.fullmatch(again.first_seen_at)


async def test_decorated_function_runs_once_per_arguments(sdk: Sdk, key: str) -> None:
    ran = []

    @sdk.awaited
    @sdk.lib.idempotent(sdk.client, key_prefix=key, ttl=60, return_value_on_duplicate="skipped")
    @sdk.native
    async def charge(order: int, *, currency: str = "EUR") -> str:
        ran.append((order, currency))
        return f"charged {order}"

    assert await charge(1) == "charged 1"
    assert await charge(1) == "skipped"
    assert await charge(2) == "charged 2"
    assert await charge(1, currency="USD") == "charged 1"
    assert ran == [(1, "EUR"), (2, "EUR"), (1, "USD")]


async def test_decorated_function_has_its_own_key_and_duplicate_handler(sdk: Sdk, key: str) -> None:
    @sdk.awaited
    @sdk.lib.idempotent(
        sdk.client,
        key_prefix=key,
        ttl=60,
        key_func=lambda order: f"order-{order.id}",
        on_duplicate=sdk.native(_seen_before),
    )
    @sdk.native
    async def ship(order: Order) -> str:
        return f"shipped {order.id}"

    assert await ship(Order(id=7)) == "shipped 7"
    assert await ship(Order(id=7, note="another note")) == "seen 7"
    assert (await sdk.check_lock(f"{key}:order-7", ttl=60)).duplicate


async def _seen_before(order: Order) -> str:
    return f"seen {order.id}"


async def test_decorated_function_tells_models_apart_by_value(sdk: Sdk, key: str) -> None:
    @sdk.awaited
    @sdk.lib.idempotent(sdk.client, key_prefix=key, ttl=60)
    @sdk.native
    async def ship(order: Order, item: Item) -> str:
        return f"shipped {order.id} {item.sku}"

    assert await ship(Order(id=7), Item("a")) == "shipped 7 a"
    assert await ship(Order(id=7), Item("a")) is None
    assert await ship(Order(id=8), Item("a")) == "shipped 8 a"
    assert await ship(Order(id=7), Item("b")) == "shipped 7 b"


async def test_one_of_16_concurrent_decorated_calls_runs(sdk: Sdk, key: str) -> None:
    ran = []

    @sdk.awaited
    @sdk.lib.idempotent(sdk.client, key_prefix=key)
    @sdk.native
    async def send(to: str) -> str:
        ran.append(to)
        return "sent"

    results = await asyncio.gather(*(send("a@example.org") for _ in range(16)))
    assert ran == ["a@example.org"]
    assert sorted(map(str, results)) == ["None"] * 15 + ["sent"]


async def test_langchain_tool_runs_once_per_input(sdk: Sdk, face: Face, key: str) -> None:
    make_idempotent_tool = sdk.lib.module(".integrations.langchain").make_idempotent_tool
    ran = []

    @tool
    def refund(order: int) -> str:
        """Refund an order."""
        ran.append(order)
        return f"refunded {order}"

    once = make_idempotent_tool(refund, client=sdk.client, key_prefix=key)
    call = once.ainvoke if face.mode == "async" else sdk.in_thread(once.invoke)
    assert await call({"order": 1}) == "refunded 1"
    assert "skipped" in await call({"order": 1})
    assert await call({"order": 2}) == "refunded 2"
    assert ran == [1, 2]
