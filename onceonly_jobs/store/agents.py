"""Agents: their switch, their policy with its versions, and what they did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.store.governance import DAY, HOUR
from onceonly_jobs.store.rowset import to_rows
from onceonly_jobs.store.statement import Operation, Statement, many, nothing, one_or_none
from onceonly_jobs.store.stopping import stopping

_NAMED = "json_to_recordset(CAST(:agents AS json)) AS q (tenant_id text, agent_id text)"

# In the order of their names, so that no two of these statements wait for each other.
_LOCK = sa.text(f"""
SELECT count(*) FROM (
    SELECT FROM {_NAMED} JOIN agents a USING (tenant_id, agent_id)
    ORDER BY tenant_id, agent_id FOR NO KEY UPDATE OF a
) held
""")

_MAKE = sa.text(f"""
INSERT INTO agents AS a (tenant_id, agent_id) SELECT tenant_id, agent_id FROM {_NAMED} ORDER BY tenant_id, agent_id
ON CONFLICT (tenant_id, agent_id) DO UPDATE SET agent_id = a.agent_id
""")


def lock(*agents: tuple[str, str]) -> Operation[None]:
    """Hold the rows of these agents, of (tenant_id, agent_id), until the transaction ends, making them if need be.

    Whatever the transaction then decides about them is decided alone.
    """
    named = [{"tenant_id": tenant_id, "agent_id": agent_id} for tenant_id, agent_id in sorted(set(agents))]
    params = {"agents": to_rows(named)}
    held = yield from Statement("agents.lock", _LOCK, lambda r: int(r.scalar_one()), params)
    if held < len(named):
        yield from Statement("agents.make", _MAKE, nothing, params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    agent_id: str
    policy: dict[str, Any]
    version: int


def _policy(row: sa.RowMapping) -> Policy:
    return Policy(agent_id=row["agent_id"], policy=row["policy"], version=row["policy_version"])


_SET_POLICY = sa.text("""
WITH changed AS (
    INSERT INTO agents AS a (tenant_id, agent_id, policy, policy_version)
    VALUES (:tenant_id, :agent_id, jsonb_strip_nulls(CAST(:patch AS jsonb)), 1)
    ON CONFLICT (tenant_id, agent_id) DO UPDATE SET
        policy = jsonb_strip_nulls(
            CASE WHEN :replaces THEN '{}' ELSE coalesce(a.policy, '{}') END || CAST(:patch AS jsonb)),
        policy_version = a.policy_version + 1
    RETURNING *
), kept AS (
    INSERT INTO policy_versions (tenant_id, agent_id, version, actor, change, policy)
    SELECT tenant_id, agent_id, policy_version, CAST(:actor AS text), :change, policy FROM changed
), fed AS (
    INSERT INTO feed_events (tenant_id, type, status, agent_id, message)
    SELECT tenant_id, 'policy_changed', 'ok', agent_id, :change FROM changed
)
SELECT agent_id, policy, policy_version FROM changed
""")


def set_policy(
    tenant_id: str, agent_id: str, patch: dict[str, Any], *, replaces: bool, actor: str, change: str
) -> Statement[Policy]:
    """Merge fields into an agent's policy, or replace it by them; a null clears a field. Keeps the version."""
    return Statement(
        "agents.set_policy",
        _SET_POLICY,
        lambda r: _policy(r.mappings().one()),
        {
            "tenant_id": tenant_id,
            "agent_id": agent_id,
            "patch": json.dumps(patch),
            "replaces": replaces,
            "actor": actor,
            "change": change,
        },
    )


_POLICY = sa.text("""
SELECT agent_id, policy, policy_version FROM agents
WHERE tenant_id = :tenant_id AND agent_id = :agent_id AND policy IS NOT NULL
""")


def policy(tenant_id: str, agent_id: str) -> Statement[Policy | None]:
    """An agent's policy; None when it was never given one."""
    return Statement(
        "agents.policy", _POLICY, one_or_none(_policy), {"tenant_id": tenant_id, "agent_id": agent_id}
    )


_POLICIES = sa.text("""
SELECT agent_id, policy, policy_version FROM agents
WHERE tenant_id = :tenant_id AND policy IS NOT NULL ORDER BY agent_id
""")


def policies(tenant_id: str) -> Statement[list[Policy]]:
    return Statement("agents.policies", _POLICIES, many(_policy), {"tenant_id": tenant_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Who did what to an agent's policy or switch."""

    at: datetime
    actor: str | None
    change: str
    """`upsert`, `template:<name>`, `disabled` or `enabled`."""
    reason: str | None
    version: int
    policy: dict[str, Any] | None
    """What it became; None where only the switch was moved."""


_HISTORY = sa.text("""
SELECT at, actor, change, reason, version, policy FROM policy_versions
WHERE tenant_id = :tenant_id AND agent_id = :agent_id ORDER BY id DESC LIMIT :limit OFFSET :offset
""")


def history(tenant_id: str, agent_id: str, limit: int, offset: int) -> Statement[list[Change]]:
    """What was done to an agent's policy and switch, newest first."""
    return Statement(
        "agents.history",
        _HISTORY,
        many(lambda row: Change(**row)),
        {"tenant_id": tenant_id, "agent_id": agent_id, "limit": limit, "offset": offset},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    agent_id: str
    disabled_reason: str | None
    disabled_at: datetime | None


def _switch(row: sa.RowMapping) -> Switch:
    return Switch(
        agent_id=row["agent_id"], disabled_reason=row["disabled_reason"], disabled_at=row["disabled_at"]
    )


_SWITCH = sa.text("""
WITH switched AS (
    INSERT INTO agents AS a (tenant_id, agent_id, disabled_at, disabled_reason)
    VALUES (:tenant_id, :agent_id, CASE WHEN :disabled THEN onceonly_now() END,
            CASE WHEN :disabled THEN CAST(:reason AS text) END)
    ON CONFLICT (tenant_id, agent_id) DO UPDATE SET
        disabled_at = CASE WHEN :disabled THEN coalesce(a.disabled_at, onceonly_now()) END,
        disabled_reason = CASE WHEN :disabled THEN excluded.disabled_reason END
    RETURNING *
), kept AS (
    INSERT INTO policy_versions (tenant_id, agent_id, version, actor, change, reason)
    SELECT tenant_id, agent_id, policy_version, CAST(:actor AS text),
           CASE WHEN :disabled THEN 'disabled' ELSE 'enabled' END, CAST(:reason AS text)
    FROM switched
), fed AS (
    INSERT INTO feed_events (tenant_id, type, status, agent_id, message, data)
    SELECT tenant_id, CASE WHEN :disabled THEN 'agent_disabled' ELSE 'agent_enabled' END, 'ok', agent_id,
           CAST(:reason AS text), json_build_object('actor', CAST(:actor AS text))
    FROM switched
)
SELECT agent_id, disabled_reason, disabled_at FROM switched
""")


def switch(
    tenant_id: str, agent_id: str, *, disabled: bool, reason: str | None, actor: str
) -> Statement[Switch]:
    """Throw or release the kill switch, and keep who did so.

    Holds the agent's row: claims and decisions wait for the answer.
    """
    return Statement(
        "agents.switch",
        _SWITCH,
        lambda r: _switch(r.mappings().one()),
        {
            "tenant_id": tenant_id,
            "agent_id": agent_id,
            "disabled": disabled,
            "reason": reason,
            "actor": actor,
        },
    )


_STOP = sa.text(f"""
WITH before AS (
    SELECT id, state FROM runs
    WHERE tenant_id = :tenant_id AND agent_id = :agent_id AND owner = 'server'
      AND state IN ('queued', 'in_progress')
    ORDER BY id FOR UPDATE
), {stopping("before", "'agent_disabled'", "'the agent was disabled during the call'", told="held")}
SELECT before.state, stopped.key FROM before
JOIN stopped ON stopped.id = before.id
""")


@dataclass(frozen=True, slots=True)
class Stopped:
    keys: list[str]
    queued: int
    running: int


def stop_runs(tenant_id: str, agent_id: str, retention_s: int) -> Statement[Stopped]:
    """End every queued and running job of an agent as failed; after `switch`, in its transaction."""

    def read(result: sa.CursorResult[Any]) -> Stopped:
        rows = result.all()
        running = sum(row.state == "in_progress" for row in rows)
        return Stopped([row.key for row in rows], len(rows) - running, running)

    return Statement(
        "agents.stop_runs",
        _STOP,
        read,
        {"tenant_id": tenant_id, "agent_id": agent_id, "retention_s": retention_s},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A decision with its outcome folded in."""

    at: datetime
    agent_id: str | None
    tool: str
    allowed: bool
    decision: str
    policy_reason: str
    policy_code: str
    risk_level: str
    args_hash: str | None
    spend_micro_usd: int
    run_key: str | None
    outcome: str | None
    policy_version: int | None
    actor: str | None


_LOGS = sa.text("""
SELECT d.at, d.agent_id, d.tool, d.allowed, d.decision, d.policy_reason, d.policy_code, d.risk_level, d.args_hash,
       coalesce(o.spend_micro_usd, d.spend_micro_usd) AS spend_micro_usd, d.run_key, o.outcome, d.policy_version,
       d.actor
FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
WHERE d.tenant_id = :tenant_id AND d.agent_id = :agent_id
  AND (CAST(:decision AS text) IS NULL OR d.decision = :decision)
  AND (CAST(:tool AS text) IS NULL OR d.tool = :tool)
  AND (CAST(:since AS bigint) IS NULL OR d.at >= to_timestamp(CAST(:since AS bigint)))
  AND (CAST(:until AS bigint) IS NULL OR d.at < to_timestamp(CAST(:until AS bigint)))
ORDER BY d.id DESC LIMIT :limit OFFSET :offset
""")


def logs(
    tenant_id: str,
    agent_id: str,
    *,
    limit: int,
    offset: int = 0,
    decision: str | None = None,
    tool: str | None = None,
    since: int | None = None,
    until: int | None = None,
) -> Statement[list[LogEntry]]:
    """An agent's decisions, newest first. since and until are Unix seconds, until is not included."""
    return Statement(
        "agents.logs",
        _LOGS,
        many(lambda row: LogEntry(**row)),
        {
            "tenant_id": tenant_id,
            "agent_id": agent_id,
            "limit": limit,
            "offset": offset,
            "decision": decision,
            "tool": tool,
            "since": since,
            "until": until,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    actions: int
    blocked: int
    spend_micro_usd: int
    tools: list[tuple[str, int]]
    """Executed calls by tool, most first, at most ten."""
    known: bool
    """Whether the agent has a policy, or ever did anything."""


_STARTS = {
    "hour": HOUR,
    "day": f"{DAY}::timestamp AT TIME ZONE 'UTC'",
    "week": f"({DAY} - 6)::timestamp AT TIME ZONE 'UTC'",
}

_ACTIVITY = {
    period: sa.text(f"""
WITH recent AS (
    SELECT d.allowed, d.decision, d.tool, coalesce(o.spend_micro_usd, d.spend_micro_usd) AS spend
    FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
    WHERE d.tenant_id = :tenant_id AND d.agent_id = :agent_id AND d.at >= {start}
), by_tool AS (
    SELECT tool, count(*) AS calls FROM recent WHERE decision = 'executed'
    GROUP BY tool ORDER BY calls DESC, tool LIMIT 10
)
SELECT count(*) FILTER (WHERE decision = 'executed') AS actions,
       count(*) FILTER (WHERE NOT allowed AND decision <> 'dry_run') AS blocked,
       coalesce(sum(spend) FILTER (WHERE allowed), 0)::bigint AS spend_micro_usd,
       (SELECT coalesce(json_agg(json_build_array(tool, calls) ORDER BY calls DESC, tool), '[]') FROM by_tool)
           AS tools,
       EXISTS (SELECT FROM agents a WHERE a.tenant_id = :tenant_id AND a.agent_id = :agent_id) AS known
FROM recent
""")
    for period, start in _STARTS.items()
}


def activity(tenant_id: str, agent_id: str, period: str) -> Statement[Activity]:
    """What an agent did in the current UTC `hour`, `day`, or the last 7 UTC days (`week`)."""

    def read(result: sa.CursorResult[Any]) -> Activity:
        row = result.mappings().one()
        return Activity(
            actions=row["actions"],
            blocked=row["blocked"],
            spend_micro_usd=row["spend_micro_usd"],
            tools=[(tool, calls) for tool, calls in row["tools"]],
            known=row["known"],
        )

    return Statement(
        "agents.activity", _ACTIVITY[period], read, {"tenant_id": tenant_id, "agent_id": agent_id}
    )
