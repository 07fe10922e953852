"""Method by method: our client sends what the published SDK sends, and reads in the answer what it reads."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import httpx
import onceonly
import pytest
from onceonly.ai import AiClient
from onceonly.governance import GovernanceClient
from pydantic import BaseModel
from support.clients import OURS, PUBLISHED, Face, Mode, Sdk, connected

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

pytestmark = pytest.mark.anyio

VOLATILE = frozenset(
    "lease_id first_seen_at done_at disabled_at ts last_ts id event_id secret_id key_preview request_id args_hash"
    " decision_id policy_version actor".split()
)
WAITS = {"wait", "run_and_wait", "run_fn", "ai_run_and_wait"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """To the application in this process, keeping what was sent."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.sent: list[tuple[str, str, dict[str, str], Any]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == f"Bearer {self.api.api_key}"
        body = json.loads(request.content) if request.content else None
        query = dict(request.url.params)
        self.sent.append((request.method, request.url.path, query, settled(body)))
        raw = request.url.raw_path.decode()
        answer = self.api.app.request(request.method, raw, content=request.content, headers=request.headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def settled(value: Any, name: str = "") -> Any:
    """A value without what differs from call to call."""
    if isinstance(value, dict):
        return {key: settled(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [settled(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value).__name__, settled(fields)
    own = name in VOLATILE or (name == "key" and str(value).startswith("tool:"))
    return f"<{name}>" if own and value is not None else value


class Meta(BaseModel):
    user: int = 7


@dataclasses.dataclass
class Point:
    x: int = 1


POLICY = {
    "agent_id": "a",
    "blocked_tools": ["drop"],
    "max_actions_per_hour": 5,
    "max_spend_usd_per_day": 1.5,
    "max_calls_per_tool": {"t": 2},
    "pricing_rules": [{"tool": "t", "price_usd": 0.1}],
}
TOOL = {
    "name": "t",
    "url": "https://example.com/t",
    "scope_id": "global",
    "enabled": True,
    "auth": {"type": "hmac_sha256", "secret": "long enough"},
}
Scenario = Callable[[Sdk], Awaitable[Any]]


async def everything(*calls: Awaitable[Any]) -> list[Any]:
    return [await call for call in calls]


async def held(sdk: Sdk) -> str:
    lease = await sdk.ai.lease("k", ttl=60)
    return str(lease["lease_id"])


async def completed(sdk: Sdk, result: dict[str, Any] | None = None) -> str:
    lease_id = await held(sdk)
    await sdk.ai.complete("k", lease_id, result=result or {"n": 1})
    return "k"


async def metadata_of_every_kind(sdk: Sdk) -> Any:
    kinds = [{"a": [1, None], "d": Point}, Meta(), Point(), "text", 7, None, {}]
    return [await sdk.check_lock(f"k{n}", ttl=60, meta=kind) for n, kind in enumerate(kinds)]


async def lock(sdk: Sdk) -> Any:
    calls = [
        {"key": "k", "ttl": 60},
        {"key": "k"},
        {"key": "k", "ttl": 9, "request_id": "r", "meta": {"a": 1}},
    ]
    return [await sdk.check_lock(**call) for call in calls] + await metadata_of_every_kind(sdk)


async def run(sdk: Sdk) -> Any:
    await sdk.gov.upsert_policy(POLICY)
    return await everything(
        sdk.ai.run("k", 60, {"a": 1}, run_id=" run "),
        sdk.ai.run(key="k"),
        sdk.ai.run("m", metadata=Meta()),
        sdk.ai.run(agent_id="a", tool="drop", args={"x": 1}, spend_usd=0, run_id="run"),
    )


async def run_tool(sdk: Sdk) -> Any:
    await sdk.gov.upsert_policy(POLICY)
    return await sdk.ai.run_tool(agent_id="a", tool="drop")


async def status(sdk: Sdk) -> Any:
    lease_id = await held(sdk)
    seen = await sdk.ai.status("k")
    await sdk.ai.fail("k", lease_id, error_code="e")
    return seen, await sdk.ai.status("k")


async def result(sdk: Sdk) -> Any:
    lease_id = await held(sdk)
    seen = await sdk.ai.result("k")
    await sdk.ai.complete("k", lease_id, result={"ż": [1]}, result_hash="h")
    return seen, await sdk.ai.result("k")


async def lease(sdk: Sdk) -> Any:
    return await everything(
        sdk.ai.lease("k"), sdk.ai.lease("k", 60, Point()), sdk.ai.lease("m", metadata={"a": 1})
    )


async def extend(sdk: Sdk) -> Any:
    lease_id = await held(sdk)
    return await everything(sdk.ai.extend("k", lease_id), sdk.ai.extend("k", lease_id, 90))


async def complete(sdk: Sdk) -> Any:
    lease_id = await held(sdk)
    return await everything(
        sdk.ai.complete("k", lease_id, result={"n": 1}, result_hash="h"), sdk.ai.complete("k", lease_id)
    )


async def fail(sdk: Sdk) -> Any:
    return await sdk.ai.fail("k", await held(sdk), error_code="e", error_hash="h")


async def cancel(sdk: Sdk) -> Any:
    lease_id = await held(sdk)
    return await everything(sdk.ai.cancel("k", lease_id, "no more"), sdk.ai.cancel("k", lease_id))


async def events(sdk: Sdk) -> Any:
    await lock(sdk)
    return await everything(sdk.events(), sdk.events(2, 1))


EVENT = {
    "ts": 1_711_871_390,
    "status": "ok",
    "duration_ms": 12,
    "step": "s",
    "tool": "t",
    "req_id": "r",
    "agent_id": "a",
    "message": "ż",
    "data": {"n": 1},
    "shade": "grey",
}


async def post_event(sdk: Sdk) -> Any:
    return await everything(
        sdk.post_event(run_id="r/1 x", type="note"), sdk.post_event(run_id="r", type="note", **EVENT)
    )


async def timeline(sdk: Sdk) -> Any:
    await post_event(sdk)
    return await everything(sdk.get_run_timeline(" r/1 x "), sdk.get_run_timeline("r", limit=1, offset=0))


async def notifications(sdk: Sdk) -> Any:
    return await sdk.update_notifications(
        email_notifications_enabled=False, run_failure_notifications_enabled=True
    )


async def usage(sdk: Sdk) -> Any:
    await lock(sdk)
    return await everything(sdk.usage(), sdk.usage("ai"))


async def policies(sdk: Sdk) -> Any:
    await sdk.gov.upsert_policy(POLICY)
    return await sdk.gov.list_policies()


async def policy(sdk: Sdk) -> Any:
    await sdk.gov.upsert_policy(POLICY)
    return await sdk.gov.get_policy("a")


async def upsert(sdk: Sdk) -> Any:
    return await everything(
        sdk.gov.upsert_policy(POLICY),
        sdk.gov.upsert_policy({"max_actions_per_hour": 9}, agent_id="a"),
        sdk.gov.upsert_policy({"agent_id": "x", "max_actions_per_hour": None}, agent_id="b c"),
    )


async def template(sdk: Sdk) -> Any:
    return await everything(
        sdk.gov.policy_from_template("a", "moderate"),
        sdk.gov.policy_from_template("a", "strict", {"max_actions_per_hour": 3}),
    )


def with_tool(method: str, *args: Any, **options: Any) -> Scenario:
    async def scenario(sdk: Sdk) -> Any:
        await sdk.gov.create_tool(TOOL)
        await sdk.gov.create_tool({**TOOL, "scope_id": "agent:a"})
        return await getattr(sdk.gov, method)(*args, **options)

    return scenario


async def agent_switched(sdk: Sdk) -> Any:
    return await everything(
        sdk.gov.disable_agent("a", "odd"),
        sdk.gov.disable_agent("b"),
        sdk.gov.enable_agent("a", reason="well"),
    )


async def enable(sdk: Sdk) -> Any:
    await sdk.gov.disable_agent("a")
    return await everything(sdk.gov.enable_agent("a"), sdk.gov.enable_agent("new"))


def after_a_blocked_call(method: str, *args: Any, **options: Any) -> Scenario:
    async def scenario(sdk: Sdk) -> Any:
        await run_tool(sdk)
        return await getattr(sdk.gov, method)(*args, **options)

    return scenario


async def run_fn(sdk: Sdk) -> Any:
    @sdk.native
    async def work() -> Any:
        return {"n": 1}

    return [await sdk.ai.run_fn("k", work, ttl=60) for _ in range(2)]


async def wait(sdk: Sdk) -> Any:
    return await sdk.ai.wait(await completed(sdk))


SAME_REQUESTS: dict[str, Scenario] = {
    "check_lock": lock,
    "ai_run": lambda sdk: sdk.ai_run("k", ttl=60),
    "me": lambda sdk: sdk.me(),
    "update_notifications": notifications,
    "usage": usage,
    "usage_all": lambda sdk: sdk.usage_all(),
    "events": events,
    "post_event": post_event,
    "get_run_timeline": timeline,
    "metrics": lambda sdk: sdk.metrics("2026-01-01", "2026-01-02"),
    "run": run,
    "run_tool": run_tool,
    "status": status,
    "result": result,
    "lease": lease,
    "extend": extend,
    "complete": complete,
    "fail": fail,
    "cancel": cancel,
    "upsert_policy": upsert,
    "policy_from_template": template,
    "list_policies": policies,
    "get_policy": policy,
    "create_tool": lambda sdk: sdk.gov.create_tool(TOOL),
    "list_tools": with_tool("list_tools"),
    "get_tool": with_tool("get_tool", "t", scope_id="agent:a"),
    "toggle_tool": with_tool("toggle_tool", "t", enabled=False),
    "delete_tool": with_tool("delete_tool", "t"),
    "disable_agent": agent_switched,
    "enable_agent": enable,
    "agent_logs": after_a_blocked_call("agent_logs", "a", 5),
    "agent_metrics": after_a_blocked_call("agent_metrics", "a", "week"),
}
SAME_ANSWERS: dict[str, Scenario] = {
    "wait": wait,
    "run_and_wait": lambda sdk: sdk_after(sdk, "run_and_wait"),
    "run_fn": run_fn,
    "ai_run_and_wait": lambda sdk: sdk_after(sdk, "ai_run_and_wait"),
}


async def sdk_after(sdk: Sdk, method: str) -> Any:
    key = await completed(sdk, {"n": 1})
    return await getattr(sdk.ai if method == "run_and_wait" else sdk, method)(key, ttl=60)


def test_every_method_is_compared() -> None:
    methods = {
        name
        for cls in (onceonly.OnceOnly, AiClient, GovernanceClient)
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and not name.startswith("_") and not name.endswith("_async")
    } - {"close", "aclose"}
    assert set(SAME_REQUESTS) | set(SAME_ANSWERS) == methods
    assert set(SAME_ANSWERS) == WAITS


async def played(scenario: Scenario, api: Api, face: Face) -> tuple[Any, list[Any]]:
    """What a scenario gave, and what it sent."""
    wire = Wire(api)
    async with connected("http://test", api.api_key, face, transport=wire, async_transport=wire) as sdk:
        return settled(await scenario(sdk)), wire.sent


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", [*SAME_REQUESTS, *SAME_ANSWERS])
async def test_both_clients_do_the_same(name: str, mode: Mode, new_tenant_with_tools: NewApi) -> None:
    scenario = SAME_REQUESTS.get(name) or SAME_ANSWERS[name]
    theirs, they_sent = await played(scenario, new_tenant_with_tools(), Face(mode, PUBLISHED))
    ours, we_sent = await played(scenario, new_tenant_with_tools(), Face(mode, OURS))
    assert ours == theirs
    if name in SAME_REQUESTS:
        assert we_sent == they_sent
