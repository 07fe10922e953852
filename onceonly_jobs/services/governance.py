"""What agents may do: policies, the kill switch, and the proof of both."""

from __future__ import annotations

from typing import Any

from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.policies import PolicyRequest, TemplateRequest
from onceonly_jobs.domain.governance import TEMPLATES
from onceonly_jobs.domain.plans import FEATURES, Feature
from onceonly_jobs.errors import AgentNotFound, FeatureNotAvailable, PolicyNotFound, UnknownTools
from onceonly_jobs.store import agents, tools
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.agents import Activity, Change, LogEntry, Policy, Stopped, Switch
from onceonly_jobs.store.statement import Operation, autocommit


def require(caller: Caller, feature: Feature) -> None:
    """Raises FeatureNotAvailable where the caller's plan lacks it."""
    if feature not in FEATURES[caller.plan_table][caller.plan]:
        raise FeatureNotAvailable(feature.value, caller.plan.value)


def _require_fields(caller: Caller, fields: dict[str, Any]) -> None:
    """Raises FeatureNotAvailable for a field that the plan lacks: dropping a whitelist silently would be unsafe."""
    for name, value in fields.items():
        if value is not None:
            require(caller, Feature(name))


def _require_known_tools(caller: Caller, agent_id: str, fields: dict[str, Any]) -> Operation[None]:
    """Raises UnknownTools where the fields name a tool that the agent could not be given."""
    named = [
        *(fields.get("allowed_tools") or []),
        *(fields.get("blocked_tools") or []),
        *(fields.get("max_calls_per_tool") or {}),
        *(rule["tool"] for rule in fields.get("pricing_rules") or []),
    ]
    unknown = yield from tools.unknown(caller.tenant_id, agent_id, list(dict.fromkeys(named)))
    if unknown:
        raise UnknownTools(unknown)


@autocommit
def set_policy(
    caller: Caller, agent_id: str, request: PolicyRequest, *, strict_tools: bool = False
) -> Operation[Policy]:
    """Merge the given fields into the agent's policy. Raises FeatureNotAvailable, and UnknownTools where strict."""
    require(caller, Feature.POLICIES)
    patch = request.given()
    _require_fields(caller, patch)
    if strict_tools:
        yield from _require_known_tools(caller, agent_id, patch)
    return (
        yield from agents.set_policy(
            caller.tenant_id, agent_id, patch, replaces=False, actor=caller.key_id, change="upsert"
        )
    )


@autocommit
def set_policy_from_template(
    caller: Caller, agent_id: str, request: TemplateRequest, *, strict_tools: bool = False
) -> Operation[Policy]:
    """Replace the agent's policy by a template with overrides.

    Strict is about the overrides: what a template names need not be there. Raises FeatureNotAvailable, UnknownTools.
    """
    require(caller, Feature.POLICIES)
    require(caller, Feature.POLICY_TEMPLATES)
    fields = {**TEMPLATES[request.template], **request.overrides.given()}
    _require_fields(caller, fields)
    if strict_tools:
        yield from _require_known_tools(caller, agent_id, request.overrides.given())
    return (
        yield from agents.set_policy(
            caller.tenant_id,
            agent_id,
            fields,
            replaces=True,
            actor=caller.key_id,
            change=f"template:{request.template}",
        )
    )


@autocommit
def get_policy(caller: Caller, agent_id: str) -> Operation[Policy]:
    """Raises FeatureNotAvailable, PolicyNotFound."""
    require(caller, Feature.POLICIES)
    policy = yield from agents.policy(caller.tenant_id, agent_id)
    if policy is None:
        raise PolicyNotFound(agent_id)
    return policy


@autocommit
def list_policies(caller: Caller) -> Operation[list[Policy]]:
    """Every agent's policy. Raises FeatureNotAvailable."""
    require(caller, Feature.POLICIES)
    return (yield from agents.policies(caller.tenant_id))


@autocommit
def history(caller: Caller, agent_id: str, limit: int, offset: int) -> Operation[list[Change]]:
    """Who changed the agent's policy or moved its switch, newest first. Raises FeatureNotAvailable."""
    require(caller, Feature.POLICIES)
    return (yield from agents.history(caller.tenant_id, agent_id, limit, offset))


@autocommit
def history_of(tenant_id: str, agent_id: str, limit: int, offset: int) -> Operation[list[Change]]:
    """`history` for an operator, whatever the tenant's plan."""
    return (yield from agents.history(tenant_id, agent_id, limit, offset))


def disable(
    caller: Caller, agent_id: str, request: SwitchRequest, retention_s: int
) -> Operation[tuple[Switch, Stopped]]:
    """Throw the kill switch, and end what the agent has queued or running. Raises FeatureNotAvailable.

    The switch is first, so that whoever is deciding or claiming has done so before the runs are looked for.
    """
    require(caller, Feature.KILL_SWITCH)
    switch = yield from agents.switch(
        caller.tenant_id, agent_id, disabled=True, reason=request.reason, actor=caller.key_id
    )
    stopped = yield from agents.stop_runs(caller.tenant_id, agent_id, retention_s)
    return switch, stopped


@autocommit
def enable(caller: Caller, agent_id: str, request: SwitchRequest) -> Operation[Switch]:
    """Release the kill switch. Raises FeatureNotAvailable."""
    require(caller, Feature.KILL_SWITCH)
    return (
        yield from agents.switch(
            caller.tenant_id, agent_id, disabled=False, reason=request.reason, actor=caller.key_id
        )
    )


@autocommit
def logs(caller: Caller, agent_id: str, **wanted: Any) -> Operation[list[LogEntry]]:
    """The agent's decisions, newest first. Raises FeatureNotAvailable."""
    require(caller, Feature.AUDIT)
    return (yield from agents.logs(caller.tenant_id, agent_id, **wanted))


@autocommit
def metrics(caller: Caller, agent_id: str, period: str) -> Operation[Activity]:
    """What the agent did. Raises FeatureNotAvailable, AgentNotFound."""
    require(caller, Feature.AUDIT)
    activity = yield from agents.activity(caller.tenant_id, agent_id, period)
    if not activity.known and not activity.actions and not activity.blocked:
        raise AgentNotFound(agent_id)
    return activity
