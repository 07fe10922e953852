"""Governed tool calls as a user meets them: the published SDK, the whole system, and a tool that counts for itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from onceonly import OnceOnly
from onceonly.exceptions import ApiError, OverLimitError
from support.clients import unique
from support.sdk_tenants import Tenant
from support.storms import storm
from support.tool_server import ToolServer, after, broken_off, ok, status

from onceonly_jobs.domain.signatures import verify
from onceonly_jobs.local.subprocess_system import LocalSystem

SECRET = "a shared secret"
AGENT = "support-bot"


@pytest.fixture
def tool() -> Iterator[ToolServer]:
    with ToolServer() as server:
        yield server


class Shop:
    """One tenant with one registered tool."""

    def __init__(self, system: LocalSystem, tenant: Tenant, tool: ToolServer) -> None:
        self.base_url = system.base_url
        self.api_key = tenant.api_key
        self.sdk = OnceOnly(api_key=tenant.api_key, base_url=system.base_url, timeout=40)
        self.tool = tool
        self.register()

    def register(self, name: str = "send_email", **fields: Any) -> None:
        auth = {"type": "hmac_sha256", "secret": SECRET}
        self.sdk.gov.create_tool(
            {
                "name": name,
                "url": self.tool.url,
                "scope_id": "global",
                "auth": auth,
                "max_retries": 0,
                **fields,
            }
        )

    def policy(self, **fields: Any) -> None:
        self.sdk.gov.upsert_policy({"agent_id": AGENT, **fields})

    def call(self, tool: str = "send_email", spend_usd: float | None = None, **args: Any) -> Any:
        return self.sdk.ai.run_tool(agent_id=AGENT, tool=tool, args=args, spend_usd=spend_usd)

    def logs(self) -> list[Any]:
        return self.sdk.gov.agent_logs(AGENT, limit=500)


@pytest.fixture
def shop(system: LocalSystem, tenant: Tenant, tool: ToolServer) -> Iterator[Shop]:
    made = Shop(system, tenant, tool)
    yield made
    made.sdk.close()


def test_an_allowed_call_is_executed_signed_and_logged(shop: Shop) -> None:
    shop.tool.script(ok({"sent": True}))
    answer = shop.call(spend_usd=0.02, to="a@example.com")
    assert (answer.ok, answer.allowed, answer.decision) == (True, True, "executed")
    assert (answer.policy_reason, answer.risk_level, answer.result) == (
        "within_budget",
        "low",
        {"sent": True},
    )
    [request] = shop.tool.requests
    verify(SECRET, request.body, request.headers, time.time())
    assert request.json["args"] == {"to": "a@example.com"}
    assert (request.json["agent_id"], request.json["tool"], request.json["spend_usd"]) == (
        AGENT,
        "send_email",
        0.02,
    )
    assert request.headers["x-onceonly-idempotency-key"] == request.json["idempotency_key"]
    [entry] = shop.logs()
    assert (entry.allowed, entry.decision, entry.spend_usd) == (True, "executed", 0.02)
    metrics = shop.sdk.gov.agent_metrics(AGENT)
    assert (metrics.total_actions, metrics.total_spend_usd) == (1, 0.02)
    assert metrics.top_tools == [{"tool": "send_email", "count": 1}]


def test_a_repeat_is_answered_from_the_stored_result_and_costs_nothing(shop: Shop) -> None:
    first, second = shop.call(spend_usd=0.5, to="a"), shop.call(spend_usd=0.7, to="a")
    assert (second.decision, second.policy_reason, second.result) == (
        "dedup",
        "tool_idempotency",
        first.result,
    )
    assert shop.call(to="b").decision == "executed"
    assert len(shop.tool.requests) == 2
    assert shop.sdk.gov.agent_metrics(AGENT).total_spend_usd == 0.5


def test_concurrent_repeats_are_one_call_and_all_get_its_result(shop: Shop) -> None:
    shop.tool.script(after(0.5, ok({"n": 1})))
    answers = storm(6, lambda: shop.call(to="a"))
    assert Counter(answer.decision for answer in answers) == {"executed": 1, "dedup": 5}
    assert all(answer.result == {"n": 1} for answer in answers)
    assert len(shop.tool.requests) == 1


def test_blocked_tools_and_the_kill_switch_are_answers_not_errors(shop: Shop) -> None:
    shop.policy(allowed_tools=["send_email"], blocked_tools=["delete_user"])
    blocked = shop.call("delete_user")
    assert (blocked.allowed, blocked.decision, blocked.policy_reason) == (
        False,
        "blocked",
        "tool_not_allowed",
    )
    assert blocked.risk_level == "high"
    shop.sdk.gov.disable_agent(AGENT, reason="suspicious")
    assert shop.call(to="x").policy_reason == "agent_disabled"
    shop.sdk.gov.enable_agent(AGENT)
    assert shop.call(to="x").decision == "executed"
    shop.sdk.gov.toggle_tool("send_email", enabled=False)
    assert shop.call(to="y").policy_reason == "tool_disabled"
    assert len(shop.tool.requests) == 1
    assert [entry.decision for entry in shop.logs()] == ["blocked", "executed", "blocked", "blocked"]


def test_an_unregistered_tool_is_404_with_its_decision_row(shop: Shop) -> None:
    with pytest.raises(ApiError) as refused:
        shop.call("nope")
    assert refused.value.status_code == 404
    assert refused.value.detail["error"] == "tool_not_found"
    [entry] = shop.logs()
    assert (entry.allowed, entry.policy_reason) == (False, "tool_not_found")


@pytest.mark.parametrize(
    ("policy", "spend", "message"),
    [
        ({"max_spend_usd_per_day": 1.0}, 1.0, "Daily spend limit exceeded ($1.00)"),
        ({"max_calls_per_tool": {"send_email": 1}}, 0, "Tool call limit exceeded (send_email: 1/day)"),
        ({"max_actions_per_hour": 1}, 0, "Hourly action limit exceeded (1/hour)"),
    ],
)
def test_limits_are_402_in_the_seeds_words(
    shop: Shop, policy: dict[str, Any], spend: float, message: str
) -> None:
    shop.policy(**policy)
    assert shop.call(spend_usd=spend, to="a").decision == "executed"
    with pytest.raises(OverLimitError) as refused:
        shop.call(spend_usd=0.01, to="b")
    detail = refused.value.detail
    assert detail["message"] == message
    assert (detail["allowed"], detail["decision"], detail["error"]) == (
        False,
        "blocked",
        detail["policy_reason"],
    )
    assert set(detail) >= {"limit", "used", "requested", "resets_at", "agent_id", "tool", "risk_level"}
    assert shop.call(to="a").decision == "dedup"


def test_a_tool_that_refuses_may_be_called_again_at_once(shop: Shop) -> None:
    shop.tool.script(status(400, b'{"why": "no"}'), ok({"sent": True}))
    failed = shop.call(to="a")
    assert (failed.ok, failed.allowed, failed.decision, failed.policy_reason) == (
        False,
        True,
        "executed",
        "tool_error",
    )
    assert failed.result["status"] == 400
    again = shop.call(to="a")
    assert (again.decision, again.result) == ("executed", {"sent": True})


def test_a_repeat_of_an_idempotent_call_that_got_lost_carries_the_same_key(shop: Shop) -> None:
    shop.tool.script(broken_off(), ok({"sent": True}))
    assert shop.call(to="a").policy_reason == "tool_error"
    assert shop.call(to="a").result == {"sent": True}
    first, second = shop.tool.requests
    assert first.json["idempotency_key"] == second.json["idempotency_key"]


def test_an_irreversible_call_that_got_lost_is_held_and_never_sent_again(shop: Shop) -> None:
    shop.register("pay", effect="irreversible", max_retries=3)
    shop.tool.script(broken_off())
    lost = shop.call("pay", spend_usd=0.5, to="a")
    assert (lost.ok, lost.allowed, lost.policy_reason) == (False, True, "outcome_unknown")
    again = shop.call("pay", spend_usd=0.5, to="a")
    assert (again.ok, again.decision, again.policy_reason) == (False, "dedup", "outcome_unknown")
    assert len(shop.tool.requests) == 1
    assert shop.sdk.gov.agent_metrics(AGENT).total_spend_usd == 0.5


def test_a_tool_that_was_never_reached_costs_nothing(shop: Shop, system: LocalSystem) -> None:
    closed = ToolServer()
    shop.register("gone", url=closed.url)
    closed._server.server_close()
    shop.policy(max_spend_usd_per_day=1.0)
    assert shop.call("gone", spend_usd=1.0).policy_reason == "tool_error"
    assert shop.call(spend_usd=1.0, to="a").decision == "executed"


def test_what_a_call_really_cost_is_booked(shop: Shop) -> None:
    shop.policy(max_spend_usd_per_day=1.0)
    shop.tool.script(ok({"cost_usd": 0.25}), ok({"cost_usd": 5.0}))
    shop.call(spend_usd=0.9, n=1)
    assert shop.sdk.gov.agent_metrics(AGENT).total_spend_usd == 0.25
    shop.call(spend_usd=0.5, n=2)
    with pytest.raises(OverLimitError):
        shop.call(spend_usd=0.01, n=3)
    assert shop.sdk.gov.agent_metrics(AGENT).total_spend_usd == 5.25


def test_a_slow_tool_goes_on_and_its_key_tells_what_came_of_it(shop: Shop) -> None:
    shop.tool.script(after(2.5, ok({"slow": True})))
    body = {"agent_id": AGENT, "tool": "send_email", "args": {"to": unique("slow")}}
    headers = {"Authorization": f"Bearer {shop.api_key}", "Prefer": "wait=1"}
    with httpx.Client(base_url=shop.base_url, headers=headers, timeout=40) as api:
        waiting = api.post("/ai/run", json=body)
        assert waiting.status_code == 409
        detail = waiting.json()["detail"]
        assert (detail["error"], detail["retry_after_sec"]) == ("in_progress", 1)
        result = api.get("/ai/result", params={"key": detail["key"], "wait": 20}).json()
        assert (result["status"], result["result"]) == ("completed", {"slow": True})
        assert api.post("/ai/run", json=body).json()["decision"] == "dedup"
    assert len(shop.tool.requests) == 1


def test_the_calls_own_job_can_not_be_asked_for_past_the_policy(shop: Shop) -> None:
    headers = {"Authorization": f"Bearer {shop.api_key}"}
    metadata = {
        "task": "onceonly.tool_call",
        "agent_id": AGENT,
        "tool": "send_email",
        "args": {},
        "spend_usd": 0,
    }
    answer = httpx.post(f"{shop.base_url}/ai/run", json={"key": "k", "metadata": metadata}, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["detail"]["error"] == "unknown_task"
    assert shop.tool.requests == []


def test_a_governed_run_is_judged_like_a_call_of_its_job(shop: Shop) -> None:
    shop.policy(blocked_tools=["echo"])
    run = shop.sdk.ai.run(key=unique("governed"), metadata={"agent_id": AGENT})
    assert (run.ok, run.status, run.error_code) == (False, "failed", "policy_blocked")
    [entry] = shop.logs()
    assert (entry.tool, entry.decision) == ("echo", "blocked")
