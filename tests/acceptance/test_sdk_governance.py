"""The governance examples of the published SDK, as its users write them: policies, tools, limits, switch, logs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.clients import Sdk
from support.sdk_tenants import Tenant
from support.tool_server import ToolServer, ok

from onceonly_jobs.domain.governance import TEMPLATES
from onceonly_jobs.local.subprocess_system import LocalSystem

pytestmark = pytest.mark.anyio

EMAIL = {"to": "user@example.com", "subject": "Hi", "body": "Welcome"}


@pytest.fixture
def tool() -> Iterator[ToolServer]:
    with ToolServer() as server:
        server.otherwise = lambda _: ok({"sent": True})
        yield server


async def register(sdk: Sdk, tool: ToolServer, *names: str) -> None:
    for name in names:
        await sdk.gov.create_tool(
            {
                "name": name,
                "url": tool.url,
                "scope_id": "global",
                "auth": {"type": "hmac_sha256", "secret": "your_shared_secret"},
                "timeout_ms": 15000,
                "max_retries": 2,
                "enabled": True,
            }
        )


async def over_limit(sdk: Sdk, **call: Any) -> str:
    """The text of the refusal that the SDK raises for a call."""
    with pytest.raises(sdk.lib.OverLimitError) as refused:
        await sdk.ai.run_tool(**call)
    text: str = refused.value.detail["message"]
    return text


async def test_governance_from_the_policy_to_the_audit_log(sdk: Sdk, tool: ToolServer) -> None:
    await register(sdk, tool, "stripe.charge", "send_email")
    agent = "billing-agent"
    policy = await sdk.gov.upsert_policy(
        {
            "agent_id": agent,
            "max_actions_per_hour": 200,
            "max_spend_usd_per_day": 50.0,
            "allowed_tools": ["stripe.charge", "send_email"],
        }
    )
    assert (policy.agent_id, policy.max_actions_per_hour, policy.max_spend_usd_per_day) == (agent, 200, 50.0)
    assert policy.allowed_tools == ["stripe.charge", "send_email"]
    for number in range(3):
        await sdk.ai.run_tool(agent_id=agent, tool="stripe.charge", args={"n": number}, spend_usd=0.5)
    await sdk.ai.run_tool(agent_id=agent, tool="send_email", args=EMAIL)
    metrics = await sdk.gov.agent_metrics(agent)
    assert (metrics.agent_id, metrics.period) == (agent, "day")
    assert (metrics.total_actions, metrics.blocked_actions, metrics.total_spend_usd) == (4, 0, 1.5)
    assert metrics.top_tools == [{"tool": "stripe.charge", "count": 3}, {"tool": "send_email", "count": 1}]
    assert (await sdk.gov.disable_agent(agent)).is_enabled is False
    assert (await sdk.gov.enable_agent(agent)).is_enabled is True
    logs = await sdk.gov.agent_logs(agent)
    assert len(logs) == 4
    first = logs[-1]
    assert (first.tool, first.allowed, first.decision, first.policy_reason) == (
        "stripe.charge",
        True,
        "executed",
        "within_budget",
    )
    assert (first.risk_level, first.spend_usd, len(first.args_hash)) == ("medium", 0.5, 64)


async def test_tool_permissions_allow_some_tools_and_block_others(sdk: Sdk, tool: ToolServer) -> None:
    await register(sdk, tool, "send_email", "stripe.charge")
    policy = await sdk.gov.upsert_policy(
        {
            "agent_id": "support-bot",
            "allowed_tools": ["send_email", "stripe.refund"],
            "blocked_tools": ["stripe.charge", "delete_user"],
        }
    )
    assert policy.blocked_tools == ["stripe.charge", "delete_user"]
    sent = await sdk.ai.run_tool(agent_id="support-bot", tool="send_email", args=EMAIL, spend_usd=0.02)
    assert (sent.allowed, sent.decision, sent.result) == (True, "executed", {"sent": True})
    assert tool.requests[0].json["args"] == EMAIL
    for name, risk in (("stripe.charge", "medium"), ("delete_user", "high"), ("search", "low")):
        refused = await sdk.ai.run_tool(agent_id="support-bot", tool=name, args={"id": 1}, spend_usd=0.02)
        assert (refused.allowed, refused.decision) == (False, "blocked")
        assert (refused.policy_reason, refused.risk_level, refused.result) == ("tool_not_allowed", risk, None)
    assert len(tool.requests) == 1
    blocked = [log for log in await sdk.gov.agent_logs("support-bot") if not log.allowed]
    assert {(log.tool, log.decision, log.spend_usd) for log in blocked} == {
        (name, "blocked", 0.0) for name in ("stripe.charge", "delete_user", "search")
    }


async def test_budget_limits_are_raised_in_the_documented_words(sdk: Sdk, tool: ToolServer) -> None:
    await register(sdk, tool, "send_email", "search")
    agent = "support-bot"
    await sdk.gov.upsert_policy(
        {
            "agent_id": agent,
            "max_actions_per_hour": 5,
            "max_spend_usd_per_day": 1.0,
            "allowed_tools": ["send_email", "search"],
            "max_calls_per_tool": {"send_email": 2},
        }
    )
    for number in range(2):
        await sdk.ai.run_tool(agent_id=agent, tool="send_email", args={"n": number}, spend_usd=0.2)
    third = {"agent_id": agent, "tool": "send_email", "args": {"n": 3}, "spend_usd": 0.2}
    assert await over_limit(sdk, **third) == "Tool call limit exceeded (send_email: 2/day)"
    dear = {"agent_id": agent, "tool": "search", "args": {}, "spend_usd": 0.61}
    assert await over_limit(sdk, **dear) == "Daily spend limit exceeded ($1.00)"
    for number in range(3):
        await sdk.ai.run_tool(agent_id=agent, tool="search", args={"n": number})
    sixth = {"agent_id": agent, "tool": "search", "args": {"n": 6}}
    assert await over_limit(sdk, **sixth) == "Hourly action limit exceeded (5/hour)"
    metrics = await sdk.gov.agent_metrics(agent, period="hour")
    assert (metrics.total_actions, metrics.blocked_actions, metrics.total_spend_usd) == (5, 3, 0.4)
    exceeded = {log.reason for log in await sdk.gov.agent_logs(agent) if log.decision == "blocked"}
    assert exceeded == {
        "daily_spend_exceeded",
        "max_calls_per_tool_exceeded",
        "max_actions_per_hour_exceeded",
    }
    await sdk.gov.upsert_policy({"agent_id": agent, "max_actions_per_hour": 10})
    assert (await sdk.ai.run_tool(**sixth)).decision == "executed", "a raised limit lets the agent go on"
    kept = await sdk.gov.get_policy(agent)
    assert (kept.max_actions_per_hour, kept.max_spend_usd_per_day) == (10, 1.0)


async def test_policy_templates_with_and_without_overrides(sdk: Sdk) -> None:
    for template, fields in TEMPLATES.items():
        policy = await sdk.gov.policy_from_template(f"agent-{template}", template)
        assert policy.policy == fields
    tuned = await sdk.gov.policy_from_template(
        "tuned", "moderate", overrides={"max_actions_per_hour": 25, "blocked_tools": ["delete_user"]}
    )
    assert (tuned.max_actions_per_hour, tuned.max_spend_usd_per_day) == (25, 50.0)
    assert tuned.blocked_tools == ["delete_user"]
    listed = {policy.agent_id for policy in await sdk.gov.list_policies()}
    assert listed == {"tuned", *(f"agent-{template}" for template in TEMPLATES)}


async def test_the_emergency_stop_its_investigation_and_the_way_back(sdk: Sdk, tool: ToolServer) -> None:
    await register(sdk, tool, "stripe.charge")
    agent = "suspicious-agent"
    await sdk.ai.run_tool(agent_id=agent, tool="stripe.charge", args={"n": 1}, spend_usd=12.5)
    stopped = await sdk.gov.disable_agent(agent, reason="Unusual spending pattern detected")
    assert (stopped.agent_id, stopped.enabled) == (agent, False)
    assert stopped.disabled_reason == "Unusual spending pattern detected"
    assert stopped.disabled_at is not None
    refused = await sdk.ai.run_tool(agent_id=agent, tool="stripe.charge", args={"n": 2}, spend_usd=1)
    assert (refused.allowed, refused.policy_reason) == (False, "agent_disabled")
    logs = await sdk.gov.agent_logs(agent, limit=100)
    assert [(log.tool, log.spend_usd) for log in logs if log.spend_usd > 10] == [("stripe.charge", 12.5)]
    back = await sdk.gov.enable_agent(agent, reason="false alarm")
    assert (back.enabled, back.disabled_reason, back.disabled_at) == (True, None, None)
    assert (await sdk.ai.run_tool(agent_id=agent, tool="stripe.charge", args={"n": 2})).decision == "executed"


async def test_the_registry_of_tools(sdk: Sdk, tool: ToolServer) -> None:
    await register(sdk, tool, "send_email", "search")
    assert {listed["name"] for listed in await sdk.gov.list_tools()} == {"send_email", "search"}
    one = await sdk.gov.get_tool("send_email")
    assert (one["url"], one["timeout_ms"], one["max_retries"], one["enabled"]) == (tool.url, 15000, 2, True)
    assert "your_shared_secret" not in str(one)
    assert (await sdk.gov.toggle_tool("send_email", enabled=False))["enabled"] is False
    refused = await sdk.ai.run_tool(agent_id="bot", tool="send_email", args=EMAIL)
    assert (refused.allowed, refused.policy_reason) == (False, "tool_disabled")
    await sdk.gov.delete_tool("send_email")
    assert [listed["name"] for listed in await sdk.gov.list_tools()] == ["search"]


async def test_metrics_of_every_period_and_of_nobody(sdk: Sdk, tool: ToolServer) -> None:
    await register(sdk, tool, "search")
    with pytest.raises(sdk.lib.ApiError) as unknown:
        await sdk.gov.agent_metrics("my-agent")
    assert unknown.value.status_code == 404
    await sdk.ai.run_tool(agent_id="my-agent", tool="search", args={}, spend_usd=0.25)
    for period in ("hour", "day", "week"):
        metrics = await sdk.gov.agent_metrics("my-agent", period=period)
        assert (metrics.period, metrics.total_actions, metrics.total_spend_usd) == (period, 1, 0.25)


DEBUG = """
import os
from onceonly import OnceOnly

client = OnceOnly(api_key=os.environ["ONCEONLY_API_KEY"], base_url=os.environ["ONCEONLY_BASE_URL"])
agent = os.environ.get("ONCEONLY_AGENT_ID", "support-bot")
try:
    client.gov.agent_metrics(agent)
except Exception as e:
    print("No policy found:", e)
client.gov.upsert_policy({"agent_id": agent, "max_actions_per_hour": 5, "blocked_tools": ["delete_user"]})
client.ai.run_tool(agent_id=agent, tool="delete_user", args={"id": 7})
metrics = client.gov.agent_metrics(agent, period="day")
print(f"Spend: ${metrics.total_spend_usd} / $1.00")
print(f"Actions: {metrics.total_actions} / 5")
for log in client.gov.agent_logs(agent, limit=10):
    print(f"{log.tool}: {log.decision} - {log.reason}")
"""


def test_a_script_that_asks_why_nothing_happens(system: LocalSystem, tenant: Tenant) -> None:
    """In a process of its own, with nothing but the variables that the examples name."""
    env = {"ONCEONLY_API_KEY": tenant.api_key, "ONCEONLY_BASE_URL": system.base_url}
    done = subprocess.run(
        [sys.executable, "-c", DEBUG], env=os.environ | env, capture_output=True, text=True, check=True
    )
    first, *said = done.stdout.splitlines()
    assert first.startswith("No policy found:")
    assert said == ["Spend: $0.0 / $1.00", "Actions: 0 / 5", "delete_user: blocked - tool_not_allowed"]
