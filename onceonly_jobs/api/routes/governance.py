"""/policies and /agents: what agents may do, the kill switch, and what they did."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse

from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.contracts.agents import AgentMetrics, LogItem, Period, SwitchAnswer, SwitchRequest
from onceonly_jobs.contracts.fields import MAX_UNIX_S, Text, unix_s, utc_iso
from onceonly_jobs.contracts.policies import PolicyAnswer, PolicyChange, PolicyRequest, TemplateRequest
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.domain.governance import usd
from onceonly_jobs.services import governance
from onceonly_jobs.store.agents import Change, LogEntry, Policy, Switch

router = APIRouter(route_class=ContractRoute, tags=["governance"])

AgentId = Annotated[Text, Path(min_length=1, max_length=256, pattern=r"\S", description="The agent's name.")]
UnixSeconds = Annotated[int, Query(ge=0, le=MAX_UNIX_S, description="Unix seconds.")]


def _policy(policy: Policy) -> dict[str, Any]:
    return {"agent_id": policy.agent_id, "policy": policy.policy, "version": policy.version}


@router.post(
    "/policies/{agent_id}",
    response_model=PolicyAnswer,
    summary="Set limits and permissions",
    responses=problems(400, 413),
)
async def set_policy(agent_id: AgentId, body: PolicyRequest, state: Held, caller: Asking) -> JSONResponse:
    """Absent fields keep their value, null clears one. Takes effect with the agent's next call; what it has used
    in the current hour and day still counts. Unknown fields are refused."""
    strict = state.settings.strict_tools
    policy = await state.db.arun(governance.set_policy, caller, agent_id, body, strict_tools=strict)
    return JSONResponse(_policy(policy))


@router.post(
    "/policies/{agent_id}/from-template",
    response_model=PolicyAnswer,
    summary="Use a policy template",
    responses=problems(400, 413),
)
async def from_template(
    agent_id: AgentId, body: TemplateRequest, state: Held, caller: Asking
) -> JSONResponse:
    """Replaces the whole policy: the template's fields, overlaid with those of `overrides`."""
    strict = state.settings.strict_tools
    policy = await state.db.arun(
        governance.set_policy_from_template, caller, agent_id, body, strict_tools=strict
    )
    return JSONResponse(_policy(policy))


@router.get("/policies", response_model=list[PolicyAnswer], summary="All policies")
async def list_policies(state: Held, caller: Asking) -> JSONResponse:
    """By agent. An agent without a policy may call every registered tool, without limits."""
    return JSONResponse([_policy(policy) for policy in await state.db.arun(governance.list_policies, caller)])


@router.get(
    "/policies/{agent_id}", response_model=PolicyAnswer, summary="One agent's policy", responses=problems(404)
)
async def get_policy(agent_id: AgentId, state: Held, caller: Asking) -> JSONResponse:
    """The fields that are set, and only those."""
    return JSONResponse(_policy(await state.db.arun(governance.get_policy, caller, agent_id)))


@router.get(
    "/policies/{agent_id}/history", response_model=list[PolicyChange], summary="Who changed it, and when"
)
async def history(
    agent_id: AgentId,
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> JSONResponse:
    """Every version of the policy and every use of the kill switch, newest first. Sealed with the audit trail."""
    changes = await state.db.arun(governance.history, caller, agent_id, limit, offset)
    return JSONResponse([_change(change) for change in changes])


def _change(change: Change) -> dict[str, Any]:
    return {
        "ts": unix_s(change.at),
        "actor": change.actor,
        "change": change.change,
        "reason": change.reason,
        "version": change.version,
        "policy": change.policy,
    }


@router.post("/agents/{agent_id}/disable", response_model=SwitchAnswer, summary="Throw the kill switch")
async def disable(
    agent_id: AgentId, state: Held, caller: Asking, body: SwitchRequest | None = None
) -> JSONResponse:
    """When this has answered, nothing of the agent starts or goes on: its queued and running runs have ended as
    `failed` with `policy_blocked`, and every further call is blocked."""
    request, retention_s = body or SwitchRequest(), state.settings.retention_s
    switch, stopped = await state.db.arun(governance.disable, caller, agent_id, request, retention_s)
    for key in stopped.keys:
        await state.hints.finished(caller.tenant_id, key)
    counts = {"stopped_queued": stopped.queued, "stopping_running": stopped.running}
    return JSONResponse(_switch(switch) | counts)


@router.post("/agents/{agent_id}/enable", response_model=SwitchAnswer, summary="Release the kill switch")
async def enable(
    agent_id: AgentId, state: Held, caller: Asking, body: SwitchRequest | None = None
) -> JSONResponse:
    """The agent may call again, within its policy. What was stopped stays stopped."""
    return JSONResponse(
        _switch(await state.db.arun(governance.enable, caller, agent_id, body or SwitchRequest()))
    )


def _switch(switch: Switch) -> dict[str, Any]:
    return {
        "agent_id": switch.agent_id,
        "is_enabled": switch.disabled_at is None,
        "disabled_reason": switch.disabled_reason,
        "disabled_at": utc_iso(switch.disabled_at),
    }


@router.get("/agents/{agent_id}/logs", response_model=list[LogItem], summary="What was decided")
async def logs(
    agent_id: AgentId,
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    decision: Literal["executed", "blocked", "dedup", "dry_run", "replayed"] | None = None,
    tool: Annotated[Text, Query(max_length=256)] | None = None,
    since: UnixSeconds | None = None,
    until: UnixSeconds | None = None,
) -> JSONResponse:
    """Every decision about the agent's calls, newest first, with what came of it."""
    wanted: dict[str, Any] = {"limit": limit, "offset": offset, "decision": decision, "tool": tool}
    entries = await state.db.arun(governance.logs, caller, agent_id, **wanted, since=since, until=until)
    return JSONResponse([_log_item(entry) for entry in entries])


def _log_item(entry: LogEntry) -> dict[str, Any]:
    return {
        "ts": unix_s(entry.at),
        "agent_id": entry.agent_id,
        "tool": entry.tool,
        "allowed": entry.allowed,
        "decision": entry.decision,
        "policy_reason": entry.policy_reason,
        "reason": entry.policy_reason,
        "policy_code": entry.policy_code,
        "risk_level": entry.risk_level,
        "args_hash": entry.args_hash,
        "spend_usd": usd(entry.spend_micro_usd),
        "key": entry.run_key,
        "outcome": entry.outcome,
        "policy_version": entry.policy_version,
        "actor": entry.actor,
    }


@router.get(
    "/agents/{agent_id}/metrics",
    response_model=AgentMetrics,
    summary="How much it did",
    responses=problems(404),
)
async def metrics(agent_id: AgentId, state: Held, caller: Asking, period: Period = "day") -> JSONResponse:
    """The current UTC hour, the current UTC day, or the last 7 UTC days (`week`)."""
    activity = await state.db.arun(governance.metrics, caller, agent_id, period)
    return JSONResponse(
        {
            "agent_id": agent_id,
            "period": period,
            "total_actions": activity.actions,
            "blocked_actions": activity.blocked,
            "total_spend_usd": usd(activity.spend_micro_usd),
            "top_tools": [{"tool": tool, "count": calls} for tool, calls in activity.tools],
        }
    )
