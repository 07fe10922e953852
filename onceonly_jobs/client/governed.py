"""Policies, tools, the kill switch and the audit trail."""

from __future__ import annotations

from typing import Any

from onceonly_jobs.client.models import AgentLogItem, AgentMetrics, AgentStatus, Period, Policy
from onceonly_jobs.client.wire import Context, Flow, Json, Request, call, segment


def agent(ctx: Context, given: str | None) -> str:
    """The agent meant, else the client's own. Raises ValueError where there is neither."""
    agent_id = given if given is not None else ctx.settings.agent_id
    if not agent_id:
        raise ValueError("no agent: pass agent_id=, or set ONCEONLY_AGENT_ID")
    return str(agent_id)


def upsert_policy(ctx: Context, policy: Json, agent_id: str | None) -> Flow[Policy]:
    name = agent(ctx, agent_id or str(policy.get("agent_id") or "") or None)
    body = {**policy, "agent_id": name}
    answer = yield from call(ctx, Request("POST", f"/policies/{segment(name)}", body))
    return Policy.of(answer, agent_id=name, sent=body)


def policy_from_template(ctx: Context, agent_id: str, template: str, overrides: Json | None) -> Flow[Policy]:
    body = {"agent_id": agent_id, "template": template, "overrides": overrides or {}}
    path = f"/policies/{segment(agent_id)}/from-template"
    answer = yield from call(ctx, Request("POST", path, body))
    return Policy.of(answer, agent_id=agent_id, sent=body)


def list_policies(ctx: Context) -> Flow[list[Policy]]:
    answer = yield from call(ctx, Request("GET", "/policies"))
    return [Policy.of(item) for item in _items(answer)]


def get_policy(ctx: Context, agent_id: str | None) -> Flow[Policy]:
    name = agent(ctx, agent_id)
    answer = yield from call(ctx, Request("GET", f"/policies/{segment(name)}"))
    return Policy.of(answer, agent_id=name)


def create_tool(ctx: Context, tool: Json) -> Flow[Json]:
    return call(ctx, Request("POST", "/tools", dict(tool)))


def list_tools(ctx: Context, scope_id: str) -> Flow[list[Json]]:
    answer = yield from call(ctx, Request("GET", "/tools", params={"scope_id": scope_id}))
    return _items(answer)


def on_tool(ctx: Context, method: str, name: str, scope_id: str) -> Flow[Json]:
    """Read or delete a tool."""
    return call(ctx, Request(method, f"/tools/{segment(name)}", params={"scope_id": scope_id}))


def toggle_tool(ctx: Context, name: str, enabled: bool, scope_id: str) -> Flow[Json]:
    path, body = f"/tools/{segment(name)}/toggle", {"enabled": bool(enabled)}
    return call(ctx, Request("POST", path, body, {"scope_id": scope_id}))


def switch(ctx: Context, agent_id: str | None, to: str, reason: str) -> Flow[AgentStatus]:
    """`enable` or `disable` an agent."""
    name = agent(ctx, agent_id)
    body = {"reason": reason} if reason else {}
    answer = yield from call(ctx, Request("POST", f"/agents/{segment(name)}/{to}", body))
    return AgentStatus.of(answer, name)


def agent_logs(
    ctx: Context, agent_id: str | None, limit: int, **filters: str | int | None
) -> Flow[list[AgentLogItem]]:
    name = agent(ctx, agent_id)
    params = {"limit": int(limit), **{key: value for key, value in filters.items() if value is not None}}
    answer = yield from call(ctx, Request("GET", f"/agents/{segment(name)}/logs", params=params))
    return [AgentLogItem.of(row, name) for row in _items(answer)]


def agent_metrics(ctx: Context, agent_id: str | None, period: Period) -> Flow[AgentMetrics]:
    name = agent(ctx, agent_id)
    answer = yield from call(
        ctx, Request("GET", f"/agents/{segment(name)}/metrics", params={"period": period})
    )
    return AgentMetrics.of(answer, name, period)


def _items(answer: Json) -> list[Any]:
    """The rows of a list, bare (`read` put it under `data`) or wrapped."""
    for name in ("items", "data"):
        rows = answer.get(name)
        if isinstance(rows, list):
            return [row for row in rows if isinstance(row, dict)]
    return []
