"""Governed tool calls: judged, deduplicated, reserved and recorded in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.store.account import VALID_CALLERS, Caller, Vouched
from onceonly_jobs.store.events import event_row, recording
from onceonly_jobs.store.governance import AGENTS, LIMITS, RESERVE, alone, reason, together, window_end
from onceonly_jobs.store.rows import RUN_COLUMNS, to_run
from onceonly_jobs.store.rowset import numbered, to_rows
from onceonly_jobs.store.runs import free
from onceonly_jobs.store.statement import Statement
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
    traceparent: str | None = field(default_factory=traceparent)
    vouched_for: Caller | None = None
    """Who asks, as was known a moment ago: the call is only judged if that still holds."""


_AS_GIVEN = tuple(name for name in Call.__slots__ if name != "vouched_for")


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


ASKED = """tenant_id text, key text, run_id text, agent_id text, actor text, tool text, args_hash text, metadata json,
    spend_micro_usd bigint, registered boolean, enabled boolean, effect text, risk_level text, lease_id text,
    time_limit_s integer, dedup_s integer, job text, queue text, max_attempts integer,
    publish_grace_s double precision, traceparent text, caller integer"""

_FREE = free("CAST(NULL AS text)")


def held(of: str) -> str:
    """SQL for the row under the key of a call of `of`, where it answers repeats."""
    return f"SELECT r.* FROM runs r WHERE r.tenant_id = {of}.tenant_id AND r.key = {of}.key AND NOT {_FREE} LIMIT 1"


def called(repeated: str, **used: str) -> str:
    """SELECT of what becomes of each call that is `asked` for, if it is the only one. repeated is SQL."""
    between = f"""
        WHEN NOT q.registered THEN 'tool_not_found'
        WHEN NOT q.enabled THEN 'tool_disabled'
        WHEN {repeated} THEN 'tool_idempotency'"""
    return alone("q.tool", between=between, **used)


_REFUSING = f"""
    CASE v.code
        WHEN 'max_actions_per_hour_exceeded' THEN (v.policy->>'max_actions_per_hour')::numeric
        WHEN 'max_calls_per_tool_exceeded' THEN (v.policy->'max_calls_per_tool'->>v.tool)::numeric
        WHEN 'max_spend_usd_per_day_exceeded' THEN (v.policy->>'max_spend_usd_per_day')::numeric * 1000000
    END::double precision AS refusing_limit,
    CASE v.code
        WHEN 'max_actions_per_hour_exceeded' THEN v.actions
        WHEN 'max_calls_per_tool_exceeded' THEN coalesce((v.calls->>v.tool)::bigint, 0)
        WHEN 'max_spend_usd_per_day_exceeded' THEN v.spend
    END::double precision AS refusing_used,
    {window_end("v.code")} AS resets_at"""

_METERED = counting(Kind.AI, "answer", usage="code = 'ok'", charged="code = 'ok'")

_CALLING = event_row("'tool_call'", "'start'", source="won", more=", 'decision_id', decision_id")

_DECISION = "CASE a.code WHEN 'ok' THEN 'executed' WHEN 'tool_idempotency' THEN 'dedup' ELSE 'blocked' END"
_REASON = reason("a.code")


def _judging(counted: str) -> sa.TextClause:
    return sa.text(f"""
WITH asked AS MATERIALIZED (
    SELECT q.* FROM json_to_recordset(CAST(:calls AS json)) AS q (n integer, {ASKED})
    WHERE q.caller IS NULL OR q.caller IN ({VALID_CALLERS})
), held AS MATERIALIZED (
    SELECT q.n, r.* FROM asked q CROSS JOIN LATERAL ({held("q")}) r
), {AGENTS}, verdict AS MATERIALIZED ({together(called("EXISTS (SELECT FROM held WHERE held.n = q.n)"))}
), taken AS (
    INSERT INTO runs AS r
        (tenant_id, key, owner, state, run_id, agent_id, metadata, lease_id, lease_ttl_s, job, tool, queue,
         max_attempts, max_crashes, due_at, publish_at, first_seen_at, decision_id, reserved_micro_usd, reserved_at,
         effect, retention_s, traceparent)
    SELECT q.tenant_id, q.key, 'server', 'queued', q.run_id, q.agent_id, q.metadata, q.lease_id,
        q.time_limit_s, q.job, q.tool, q.queue, q.max_attempts, q.max_attempts, onceonly_now(),
        onceonly_now() + make_interval(secs => q.publish_grace_s), onceonly_now(),
        v.decision_id, v.cost, onceonly_now(), q.effect, q.dedup_s, q.traceparent
    FROM verdict v JOIN asked q USING (n) WHERE v.code = 'ok' ORDER BY q.tenant_id, q.key
    ON CONFLICT (tenant_id, key) DO UPDATE SET
        owner = 'server', state = 'queued', run_id = excluded.run_id, agent_id = excluded.agent_id,
        metadata = excluded.metadata, lease_id = excluded.lease_id, lease_ttl_s = excluded.lease_ttl_s,
        job = excluded.job, tool = excluded.tool, queue = excluded.queue, max_attempts = excluded.max_attempts,
        max_crashes = excluded.max_crashes, failures = 0, crashes = 0, errors = NULL,
        due_at = excluded.due_at, publish_at = excluded.publish_at,
        -- A repeat of a call that failed is the same call to the tool: its idempotency key is made from this.
        first_seen_at = CASE WHEN r.repeatable AND r.retain_until_at > onceonly_now()
            THEN r.first_seen_at ELSE excluded.first_seen_at END,
        decision_id = excluded.decision_id, reserved_micro_usd = excluded.reserved_micro_usd,
        reserved_at = excluded.reserved_at, effect = excluded.effect, retention_s = excluded.retention_s,
        traceparent = excluded.traceparent,
        version = r.version + 1, attempt = 0, publications = 0, dead_lettered = false, repeatable = false,
        fingerprint = NULL, lease_until_at = NULL, worker_lease_id = NULL, worker_id = NULL, worker_pid = NULL,
        deadline_at = NULL, progress = NULL,
        started_at = NULL, done_at = NULL, retain_until_at = NULL, result = NULL, result_hash = NULL,
        error_code = NULL, error_hash = NULL, error_message = NULL, concludes_id = NULL
    WHERE {_FREE}
    RETURNING r.*
), won AS (
    SELECT q.n, taken.* FROM taken JOIN asked q USING (tenant_id, key)
), answer AS MATERIALIZED (
    -- An allowed call that did not get its key lost it to somebody this snapshot does not show: asked again. And so is
    -- one that a limit refuses, where the decision before may have been on the same call: it would be a repeat of that.
    SELECT v.*, q.key, q.run_id, q.actor, q.risk_level, q.args_hash, {_REFUSING}
    FROM verdict v JOIN asked q USING (n) JOIN agent USING (n) LEFT JOIN won USING (n)
    WHERE CASE WHEN v.code = 'ok' THEN won.n IS NOT NULL ELSE v.code NOT IN {LIMITS} OR agent.as_seen END
), counted AS ({counted}
), decided AS (
    INSERT INTO audit_decisions (id, tenant_id, actor, agent_id, tool, run_key, allowed, decision, policy_reason,
                                 policy_code, risk_level, args_hash, spend_micro_usd, policy_version)
    SELECT a.decision_id, a.tenant_id, a.actor, a.agent_id, a.tool, a.key, a.code IN ('ok', 'tool_idempotency'),
           {_DECISION}, {_REASON}, a.code, a.risk_level, a.args_hash, CASE a.code WHEN 'ok' THEN a.cost ELSE 0 END,
           a.policy_version
    FROM answer a ORDER BY a.decision_id
), reserved AS ({RESERVE}
), told AS ({_CALLING}
    UNION ALL
    SELECT a.tenant_id, a.run_id, onceonly_now(), 'tool_result', 'blocked', NULL, a.tool, a.agent_id, {_REASON},
           NULL, json_build_object('key', a.key)
    -- Only on a timeline that the caller has named: one of its own would be all there ever was of it.
    FROM answer a WHERE a.code NOT IN ('ok', 'tool_idempotency') AND a.run_id <> a.key
), {recording("told")}, fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool, message)
    SELECT a.tenant_id, CASE a.code WHEN 'ok' THEN 'tool_call' WHEN 'tool_idempotency' THEN 'duplicate'
                                    ELSE 'policy_blocked' END,
           'ai', a.key, {_DECISION}, a.agent_id, a.tool, {_REASON}
    FROM answer a ORDER BY a.n
), {limits("answer", "s.tool")}
SELECT answer.n, answer.code, answer.cost, answer.refusing_limit, answer.refusing_used, answer.resets_at,
       onceonly_now() AS judged_at, answer.decision_id AS judged_as, run.*
FROM answer LEFT JOIN (
    SELECT n AS asked, {RUN_COLUMNS}, decision_id FROM won
    UNION ALL
    SELECT n, {RUN_COLUMNS}, decision_id FROM held WHERE NOT EXISTS (SELECT FROM won WHERE won.n = held.n)
) run ON run.asked = answer.n
""")


_JUDGE = _judging(_METERED)
_JUDGE_UNMETERED = _judging("SELECT")


def judge(calls: Sequence[Call], *, metered: bool = True) -> Statement[list[Judged | None]]:
    """Decide on calls; those that are allowed are reserved and queued.

    All have different keys. Whoever else asks for one of their agents waits until this is committed.

    metered: they are requests of their own, which count and are charged.

    None for one whose key was taken, or may have been, by somebody else after this statement's snapshot, whose caller
    is no longer as was vouched for, whose agent has no row yet (`agents.lock` makes it), or which depends on what
    becomes of the others: nothing was changed or counted, ask again.
    """
    answers = numbered(len(calls), lambda row: _judged(calls[row["n"]], row))
    params = as_asked(calls)
    if not metered:
        return Statement("calls.judge_unmetered", _JUDGE_UNMETERED, answers, params)
    return Statement("calls.judge", _JUDGE, answers, params | {"slot": slot()})


def as_asked(calls: Sequence[Call]) -> dict[str, str]:
    """The calls as parameters, for a statement whose `asked` are rows of ASKED."""
    callers = Vouched()
    rows = [
        {name: getattr(call, name) for name in _AS_GIVEN} | {"caller": callers.number_of(call.vouched_for)}
        for call in calls
    ]
    return {"calls": to_rows(rows), "callers": str(callers)}


def _judged(call: Call, row: sa.RowMapping) -> Judged:
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
