"""A governed tool call: judged, deduplicated, reserved and recorded in one statement."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.store.events import event_row, recording
from onceonly_jobs.store.governance import COST, LIMITS, REASON, RESERVE, WINDOWS, permission, window_end
from onceonly_jobs.store.rows import RUN_COLUMNS, to_run
from onceonly_jobs.store.runs import FREE
from onceonly_jobs.store.statement import Statement, one_or_none
from onceonly_jobs.store.usage import counting, slot
from onceonly_jobs.store.webhooks import limits
from onceonly_jobs.tracing import traceparent


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What POST /ai/run by tool asks for. `registered` and `enabled` are of the tool as it was just read."""

    tenant_id: str
    actor: str
    agent_id: str
    tool: str
    key: str
    """Where the call is kept: the same for the same agent, tool and arguments."""
    run_id: str
    args_hash: str
    metadata: dict[str, Any]
    spend_micro_usd: int
    registered: bool
    enabled: bool
    effect: str
    risk_level: str
    lease_id: str
    time_limit_s: int
    dedup_s: int
    job: str
    queue: str
    max_attempts: int
    publish_grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The decision, and the run that carries the call out or has done so."""

    code: Code
    decision_id: int
    run: Run | None
    run_decision_id: int | None
    """The decision that the run was made for: this one, or for a repeat the one that allowed the call."""
    at: datetime
    cost_micro_usd: int
    limit: float | None
    """The limit that refused, in calls or micro-dollars."""
    used: float | None
    resets_at: datetime
    job: str
    """Who carries an allowed call out, and on which queue."""
    queue: str


def verdict(windows: str = WINDOWS) -> str:
    """SQL for the checks on a call: `standing` for what comes before its repeats, `budget` for what comes after."""
    return f"""
    SELECT a.tenant_id, a.agent_id, a.policy, a.policy_version, w.actions, w.spend, w.calls, c.cost,
           CASE {permission("CAST(:tool AS text)")}
               WHEN NOT CAST(:registered AS boolean) THEN 'tool_not_found'
               WHEN NOT CAST(:enabled AS boolean) THEN 'tool_disabled'
               ELSE 'ok' END AS standing,
           CASE {LIMITS} ELSE 'ok' END AS budget
    FROM agents a, {windows}, {COST}
    WHERE a.tenant_id = :tenant_id AND a.agent_id = :agent_id"""


_REFUSING = """
    CASE judged.code
        WHEN 'max_actions_per_hour_exceeded' THEN (policy->>'max_actions_per_hour')::numeric
        WHEN 'max_calls_per_tool_exceeded' THEN (policy->'max_calls_per_tool'->>CAST(:tool AS text))::numeric
        WHEN 'max_spend_usd_per_day_exceeded' THEN (policy->>'max_spend_usd_per_day')::numeric * 1000000
    END::double precision AS refusing_limit,
    CASE judged.code
        WHEN 'max_actions_per_hour_exceeded' THEN actions
        WHEN 'max_calls_per_tool_exceeded' THEN coalesce((calls->>CAST(:tool AS text))::bigint, 0)
        WHEN 'max_spend_usd_per_day_exceeded' THEN spend
    END::double precision AS refusing_used,
    {ENDS} AS resets_at""".replace("{ENDS}", window_end("judged.code"))

_METERED = counting(Kind.AI, "answer", usage="code = 'ok'", charged="code = 'ok'")


def _judging(counted: str) -> sa.TextClause:
    return sa.text(f"""
WITH standing AS MATERIALIZED ({verdict()}
), held AS (
    SELECT r.* FROM runs r WHERE r.tenant_id = :tenant_id AND r.key = :key AND NOT {FREE}
), judged AS MATERIALIZED (
    SELECT s.*, CASE WHEN s.standing <> 'ok' THEN s.standing
                     WHEN EXISTS (SELECT FROM held) THEN 'tool_idempotency' ELSE s.budget END AS code
    FROM standing s
), won AS (
    INSERT INTO runs AS r
        (tenant_id, key, owner, state, run_id, agent_id, metadata, lease_id, lease_ttl_s, job, tool, queue,
         max_attempts, due_at, publish_at, first_seen_at, decision_id, reserved_micro_usd, reserved_at, effect,
         retention_s, traceparent)
    SELECT :tenant_id, :key, 'server', 'queued', :run_id, :agent_id, CAST(:metadata AS json), :lease_id,
        CAST(:time_limit_s AS integer), :job, :tool, :queue, CAST(:max_attempts AS integer), onceonly_now(),
        onceonly_now() + make_interval(secs => CAST(:publish_grace_s AS double precision)), onceonly_now(),
        nextval('audit_decisions_id_seq'), judged.cost, onceonly_now(), :effect, CAST(:dedup_s AS integer),
        CAST(:traceparent AS text)
    FROM judged WHERE judged.code = 'ok'
    ON CONFLICT (tenant_id, key) DO UPDATE SET
        owner = 'server', state = 'queued', run_id = excluded.run_id, agent_id = excluded.agent_id,
        metadata = excluded.metadata, lease_id = excluded.lease_id, lease_ttl_s = excluded.lease_ttl_s,
        job = excluded.job, tool = excluded.tool, queue = excluded.queue, max_attempts = excluded.max_attempts,
        due_at = excluded.due_at, publish_at = excluded.publish_at,
        -- A repeat of a call that failed is the same call to the tool: its idempotency key is made from this.
        first_seen_at = CASE WHEN r.repeatable AND r.retain_until_at > onceonly_now()
            THEN r.first_seen_at ELSE excluded.first_seen_at END,
        decision_id = excluded.decision_id, reserved_micro_usd = excluded.reserved_micro_usd,
        reserved_at = excluded.reserved_at, effect = excluded.effect, retention_s = excluded.retention_s,
        traceparent = excluded.traceparent,
        version = r.version + 1, attempt = 0, publications = 0, dead_lettered = false, repeatable = false,
        fingerprint = NULL, lease_until_at = NULL, worker_lease_id = NULL, deadline_at = NULL, progress = NULL,
        started_at = NULL, done_at = NULL, retain_until_at = NULL, result = NULL, result_hash = NULL,
        error_code = NULL, error_hash = NULL, error_message = NULL
    WHERE {FREE}
    RETURNING r.*
), answer AS (
    -- An allowed call that did not get its key lost it to somebody this snapshot does not show: asked again.
    SELECT judged.*, {_REFUSING} FROM judged WHERE judged.code <> 'ok' OR EXISTS (SELECT FROM won)
), counted AS ({counted}
), decided AS (
    INSERT INTO audit_decisions (id, tenant_id, actor, agent_id, tool, run_key, allowed, decision, policy_reason,
                                 policy_code, risk_level, args_hash, spend_micro_usd, policy_version)
    SELECT coalesce((SELECT decision_id FROM won), nextval('audit_decisions_id_seq')), tenant_id, :actor, agent_id,
           :tool, :key, code IN ('ok', 'tool_idempotency'),
           CASE code WHEN 'ok' THEN 'executed' WHEN 'tool_idempotency' THEN 'dedup' ELSE 'blocked' END,
           {REASON}, code, :risk_level, :args_hash, CASE code WHEN 'ok' THEN cost ELSE 0 END, policy_version
    FROM answer
    RETURNING id
), reserved AS ({RESERVE.replace("FROM verdict v", "FROM answer v")}
), calling AS (
    {event_row("'tool_call'", "'start'", source="won", more=", 'decision_id', decision_id")}
), {recording("calling")}, turned_away AS (
    SELECT tenant_id, CAST(:run_id AS text) AS run_id, onceonly_now() AS at, 'tool_result' AS type,
           'blocked' AS status, CAST(NULL AS text) AS step, CAST(:tool AS text) AS tool, agent_id,
           {REASON} AS message, CAST(NULL AS bigint) AS duration_ms, json_build_object('key', :key) AS data
    -- Only on a timeline that the caller has named: one of its own would be all there ever was of it.
    FROM answer WHERE code NOT IN ('ok', 'tool_idempotency') AND CAST(:run_id AS text) <> :key
), {recording("turned_away")}, fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool, message)
    SELECT tenant_id, CASE code WHEN 'ok' THEN 'tool_call' WHEN 'tool_idempotency' THEN 'duplicate'
                                ELSE 'policy_blocked' END,
           'ai', :key, CASE code WHEN 'ok' THEN 'executed' WHEN 'tool_idempotency' THEN 'dedup' ELSE 'blocked' END,
           agent_id, :tool, {REASON}
    FROM answer
), {limits("answer", "CAST(:tool AS text)")}
SELECT answer.code AS code, answer.cost, answer.refusing_limit, answer.refusing_used, answer.resets_at,
       onceonly_now() AS judged_at, (SELECT id FROM decided) AS judged_as, run.*
FROM answer LEFT JOIN (
    SELECT {RUN_COLUMNS}, decision_id FROM won
    UNION ALL SELECT {RUN_COLUMNS}, decision_id FROM held WHERE NOT EXISTS (SELECT FROM won)
) run ON true
""")


_JUDGE = _judging(_METERED)
_JUDGE_UNMETERED = _judging("SELECT")


def judge(call: Call, *, metered: bool = True) -> Statement[Judged | None]:
    """Decide on a call; allowed, it is reserved and queued. `agents.lock` must come before it in the transaction.

    metered: it is a request of its own, which counts and is charged.

    None when the key was taken by somebody else after this statement's snapshot: ask again.
    """

    def read(row: sa.RowMapping) -> Judged:
        return Judged(
            code=Code(row["code"]),
            decision_id=row["judged_as"],
            run_decision_id=row["decision_id"],
            run=None if row["id"] is None else to_run(row),
            at=row["judged_at"],
            cost_micro_usd=row["cost"],
            limit=row["refusing_limit"],
            used=row["refusing_used"],
            resets_at=row["resets_at"],
            job=call.job,
            queue=call.queue,
        )

    params = {name: getattr(call, name) for name in Call.__slots__} | {"traceparent": traceparent()}
    params["metadata"] = compact_json(call.metadata).decode()
    params["fingerprint"] = None
    if not metered:
        return Statement("calls.judge_unmetered", _JUDGE_UNMETERED, one_or_none(read), params)
    params |= {"kind": Kind.AI.value, "slot": slot()}
    return Statement("calls.judge", _JUDGE, one_or_none(read), params)
