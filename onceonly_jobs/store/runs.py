"""Taking a key, for the caller's own work or as a job for a worker; and reading what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.domain.runs import MAX_CRASHES, Run
from onceonly_jobs.domain.states import Owner
from onceonly_jobs.store.account import VALID_CALLERS, Caller, Vouched
from onceonly_jobs.store.events import elapsed_ms, event_row, recording
from onceonly_jobs.store.governance import AGENTS, NEXT_DECISION, RESERVE, alone, reason, together
from onceonly_jobs.store.rows import RETAINED, RUN_COLUMNS, to_run
from onceonly_jobs.store.rowset import numbered, to_rows
from onceonly_jobs.store.statement import Statement, one_or_none
from onceonly_jobs.store.usage import counting, month_usage, slot
from onceonly_jobs.store.webhooks import limits
from onceonly_jobs.tracing import traceparent


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """What a lease or run call wants to put under its key."""

    tenant_id: str
    key: str
    owner: Owner
    lease_id: str
    ttl_s: int
    run_id: str
    metadata: dict[str, Any] | None = None
    fingerprint: str | None = None
    agent_id: str | None = None
    actor: str | None = None
    """Who asked, for the audit trail."""
    job: str | None = None
    queue: str | None = None
    max_attempts: int = 1
    max_crashes: int = MAX_CRASHES
    risk_level: str = "low"
    delay_s: float = 0
    spend_micro_usd: int = 0
    """What the caller says it will cost; the agent's pricing rules may say more."""
    retention_s: int = 604_800
    """How long a refusal stays under the key."""
    publish_grace_s: float = 0
    """How long the relay leaves the publication of a due run to the process that took the key."""
    schedule: str | None = None
    """The schedule that asks for it, if one does."""
    slot: int = field(default_factory=slot)
    """Which counter row it adds to: takings of one transaction share one, or two transactions may deadlock."""
    traceparent: str | None = field(default_factory=traceparent)
    """The trace it belongs to."""
    acting: bool = False
    """It makes tool calls, each of which is judged by itself: of the run only the kill switch is asked."""
    vouched_for: Caller | None = None
    """Who asks, as was known a moment ago: the key is only taken if that still holds."""

    @property
    def governed(self) -> bool:
        """Whether an agent's policy decides."""
        return self.owner is Owner.SERVER and self.agent_id is not None


@dataclass(frozen=True, slots=True)
class Taken:
    outcome: Literal["acquired", "refused", "held", "mismatch"]
    run: Run
    usage: int
    """Month-to-date `ai` usage, this call's included."""


def free(fingerprint: str) -> str:
    """SQL for a key that can be taken: retention is over, a cancelled run has let go, or a caller's lease ran out."""
    return f"""(
    (r.state IN ('completed', 'failed') AND r.retain_until_at <= onceonly_now())
    OR (r.state = 'cancelled'
        AND (r.owner = 'caller' OR r.lease_until_at IS NULL OR r.lease_until_at <= onceonly_now()))
    OR (r.state = 'failed' AND r.repeatable)
    OR (r.state = 'in_progress' AND r.owner = 'caller' AND r.lease_until_at <= onceonly_now()
        AND coalesce(r.fingerprint = {fingerprint}, true))
)"""


FREE = free("CAST(:fingerprint AS text)")

_FRESH = "r.state IN ('completed', 'failed')"

_COLUMNS = """tenant_id, key, owner, state, fencing_token, run_id, agent_id, fingerprint, metadata, lease_id,
    lease_ttl_s, lease_until_at, job, tool, queue, max_attempts, max_crashes, due_at, publish_at, first_seen_at,
    started_at, decision_id, reserved_micro_usd, reserved_at, error_code, error_message, done_at, retain_until_at,
    traceparent, schedule"""

_REPLACED = ", ".join(
    f"{name} = excluded.{name}"
    for name in (part.strip() for part in _COLUMNS.split(","))
    if name not in ("tenant_id", "key", "fencing_token", "first_seen_at")
)

_CLEARED = ", ".join(
    f"{name} = NULL"
    for name in (
        "worker_lease_id worker_id worker_pid deadline_at progress result result_hash error_hash errors effect "
        "retention_s concludes_id"
    ).split()
)

_ALLOWED = "v.code = 'ok'"

_UNGOVERNED = f"""
verdict AS MATERIALIZED (
    SELECT n, 'ok' AS code, CAST(0 AS bigint) AS cost, CAST(NULL AS integer) AS policy_version,
           CASE owner WHEN 'server' THEN {NEXT_DECISION} END AS decision_id
    FROM asked
)"""

_GOVERNED = f"""{AGENTS}, verdict AS MATERIALIZED ({together(alone("q.job"))}
)"""

_SWITCHED_ON = f"""{AGENTS}, verdict AS MATERIALIZED (
    SELECT n, CASE WHEN disabled_at IS NULL THEN 'ok' ELSE 'agent_disabled' END AS code, CAST(0 AS bigint) AS cost,
           policy_version, {NEXT_DECISION} AS decision_id
    FROM agent
)"""

_ASKED = """tenant_id text, key text, owner text, lease_id text, ttl_s integer, run_id text, metadata json,
    fingerprint text, agent_id text, actor text, job text, queue text, max_attempts integer, max_crashes integer,
    risk_level text, delay_s double precision, publish_in_s double precision, retention_s integer, traceparent text,
    schedule text, spend_micro_usd bigint, caller integer"""


def _take(verdict: str, reserve: str, *, acting: bool = False) -> sa.TextClause:
    """The statement that takes keys. A refused run takes its key too: as failed, and charged to nobody.

    acting: the run is no call of its own, so no list of tools names it, no window has anything of it, and that it
    was let in is none of the agent's actions.
    """
    tool, reserved_at, let_in_as = "q.job", "onceonly_now()", "won.agent_id"
    if acting:
        tool = reserved_at = "NULL"
        let_in_as = f"CASE WHEN NOT {_ALLOWED} THEN won.agent_id END"
    server, allowed = "q.owner = 'server'", _ALLOWED
    return sa.text(f"""
WITH asked AS MATERIALIZED (
    SELECT q.* FROM json_to_recordset(CAST(:takings AS json)) AS q (n integer, {_ASKED})
    WHERE q.caller IS NULL OR q.caller IN ({VALID_CALLERS})
), {verdict}, taken AS (
    INSERT INTO runs AS r ({_COLUMNS})
    SELECT
        q.tenant_id, q.key, q.owner,
        CASE WHEN q.owner = 'caller' THEN 'in_progress' WHEN {allowed} THEN 'queued' ELSE 'failed' END,
        CASE q.owner WHEN 'caller' THEN nextval('fencing_tokens') ELSE 0 END, q.run_id, q.agent_id,
        q.fingerprint, q.metadata, q.lease_id, q.ttl_s,
        CASE q.owner WHEN 'caller' THEN onceonly_now() + make_interval(secs => q.ttl_s) END,
        q.job, {tool}, q.queue, q.max_attempts, q.max_crashes,
        CASE WHEN {server} AND {allowed} THEN onceonly_now() + make_interval(secs => q.delay_s) END,
        CASE WHEN {server} AND {allowed} THEN onceonly_now() + make_interval(secs => q.publish_in_s) END,
        onceonly_now(), CASE q.owner WHEN 'caller' THEN onceonly_now() END,
        v.decision_id,
        CASE WHEN {allowed} THEN v.cost ELSE 0 END,
        CASE WHEN {server} AND {allowed} THEN CAST({reserved_at} AS timestamptz) END,
        CASE WHEN NOT {allowed} THEN 'policy_blocked' END, CASE WHEN NOT {allowed} THEN v.code END,
        CASE WHEN NOT {allowed} THEN onceonly_now() END,
        CASE WHEN NOT {allowed} THEN onceonly_now() + make_interval(secs => q.retention_s) END,
        q.traceparent, q.schedule
    FROM asked q JOIN verdict v USING (n) ORDER BY q.tenant_id, q.key
    ON CONFLICT (tenant_id, key) DO UPDATE SET
        {_REPLACED}, {
        _CLEARED
    }, attempt = 0, failures = 0, crashes = 0, publications = 0, dead_lettered = false, repeatable = false,
        fencing_token = CASE WHEN excluded.fencing_token = 0 THEN r.fencing_token
            ELSE greatest(r.fencing_token + 1, excluded.fencing_token) END,
        version = CASE WHEN {_FRESH} THEN 1 ELSE r.version + 1 END,
        first_seen_at = CASE WHEN {_FRESH} THEN excluded.first_seen_at ELSE r.first_seen_at END
    WHERE {free("excluded.fingerprint")}
    RETURNING r.*
), won AS (
    SELECT q.n, taken.* FROM taken JOIN asked q USING (tenant_id, key)
), answer AS (
    SELECT CASE won.state WHEN 'failed' THEN 'refused' ELSE 'acquired' END AS outcome, won.* FROM won
    UNION ALL
    SELECT CASE WHEN r.fingerprint <> q.fingerprint THEN 'mismatch' ELSE 'held' END, q.n, r.*
    FROM asked q JOIN verdict v USING (n) CROSS JOIN LATERAL (
        SELECT r.* FROM runs r
        WHERE r.tenant_id = q.tenant_id AND r.key = q.key AND NOT {free("q.fingerprint")} LIMIT 1
    ) r
    WHERE NOT EXISTS (SELECT FROM won WHERE won.n = q.n)
), metered AS MATERIALIZED (
    SELECT tenant_id, {month_usage("named.tenant_id", Kind.AI)} AS before
    FROM (SELECT DISTINCT tenant_id FROM asked) named
), counted AS ({
        counting(
            Kind.AI,
            "answer",
            usage="outcome = 'acquired'",
            charged="outcome = 'acquired'",
            polling="outcome = 'held' AND state IN ('queued', 'in_progress', 'cancelled')",
        )
    }), decided AS (
    INSERT INTO audit_decisions (id, tenant_id, actor, agent_id, tool, run_key, allowed, decision,
                                 policy_reason, policy_code, risk_level, spend_micro_usd, policy_version)
    SELECT won.decision_id, won.tenant_id, q.actor, {let_in_as}, won.job, won.key, {allowed},
           CASE WHEN {allowed} THEN 'executed' ELSE 'blocked' END, {reason("v.code")}, v.code, q.risk_level,
           won.reserved_micro_usd, v.policy_version
    FROM won JOIN verdict v USING (n) JOIN asked q USING (n) WHERE won.owner = 'server' ORDER BY won.decision_id
), {reserve} starting AS ({
        event_row(
            "CASE WHEN owner = 'caller' THEN 'run_started' WHEN state = 'failed' THEN 'run_finished' "
            "ELSE 'run_queued' END",
            "CASE WHEN owner = 'caller' THEN 'started' ELSE state END",
            source="won",
            message="error_message",
            more=", 'decision_id', decision_id, 'schedule', schedule, 'due_in_ms', "
            f"CASE WHEN due_at > onceonly_now() THEN CAST({elapsed_ms('onceonly_now()', 'due_at')} AS bigint) END",
        )
    }), {recording("starting")}, fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool, message)
    SELECT tenant_id, CASE state WHEN 'failed' THEN 'policy_blocked' ELSE 'acquired' END, 'ai', key, state,
           agent_id, job, error_message
    FROM won ORDER BY n
)
SELECT n, outcome, before + count(*) FILTER (WHERE outcome = 'acquired') OVER (PARTITION BY tenant_id ORDER BY n)
           AS month_usage, {RUN_COLUMNS}
FROM answer JOIN metered USING (tenant_id)
""")


_TAKE = _take(_UNGOVERNED, "")
_TAKE_GOVERNED = _take(
    _GOVERNED,
    f"""reserved AS ({RESERVE}),
    {limits("verdict", "s.tool", "EXISTS (SELECT FROM won WHERE won.n = s.n)")},""",
)
_TAKE_ACTING = _take(_SWITCHED_ON, "", acting=True)

_AS_GIVEN = (
    "tenant_id key lease_id ttl_s run_id metadata fingerprint agent_id actor job queue max_attempts max_crashes "
    "risk_level delay_s retention_s traceparent schedule spend_micro_usd"
).split()


def take(takings: Sequence[Taking]) -> Statement[list[Taken | None]]:
    """Put a new lease or queued run under each free key; count the requests, record decisions and events.

    All are for different keys, and all are governed, or acting, or neither. Governed ones are judged in the same
    statement, and their cost is reserved. Whoever else asks for one of their agents waits until this is committed.

    None for one where another transaction changed the key after this statement's snapshot, whose caller is no longer
    as was vouched for, whose agent has no row yet (`agents.lock` makes it), or which depends on what becomes of the
    others: nothing was changed or counted, and asking again sees how it is.
    """
    callers = Vouched()
    rows = [
        {name: getattr(taking, name) for name in _AS_GIVEN}
        | {
            "owner": taking.owner.value,
            "publish_in_s": taking.delay_s + taking.publish_grace_s,
            "caller": callers.number_of(taking.vouched_for),
        }
        for taking in takings
    ]
    name, query = _taking_of(takings[0])
    return Statement(
        name,
        query,
        numbered(len(rows), lambda row: Taken(row["outcome"], to_run(row), row["month_usage"])),
        {"takings": to_rows(rows), "callers": str(callers), "slot": takings[0].slot},
    )


def _taking_of(taking: Taking) -> tuple[str, sa.TextClause]:
    if taking.acting:
        return "runs.take_acting", _TAKE_ACTING
    if taking.governed:
        return "runs.take_governed", _TAKE_GOVERNED
    return "runs.take", _TAKE


_FIND = sa.text(f"""
SELECT {RUN_COLUMNS} FROM runs WHERE tenant_id = :tenant_id AND key = :key AND {RETAINED}
""")


def find(tenant_id: str, key: str) -> Statement[Run | None]:
    """The run or lease under a key; None when it was never taken or its retention is over."""
    return Statement("runs.find", _FIND, one_or_none(to_run), {"tenant_id": tenant_id, "key": key})


_FIND_BY_ID = sa.text(f"SELECT {RUN_COLUMNS} FROM runs WHERE tenant_id = :tenant_id AND id = :id")


def find_by_id(tenant_id: str, run: int) -> Statement[Run | None]:
    """A run by its row, whether or not its key still answers for it."""
    return Statement("runs.find_by_id", _FIND_BY_ID, one_or_none(to_run), {"tenant_id": tenant_id, "id": run})


_WOULD_ACQUIRE = sa.text(f"""
SELECT NOT EXISTS (
    SELECT FROM runs r WHERE r.tenant_id = :tenant_id AND r.key = :key AND NOT {FREE}
)
""")


def would_acquire(tenant_id: str, key: str, fingerprint: str | None) -> Statement[bool]:
    """Whether taking the key now would succeed; for deciding on a hard cap, under the cap's row lock."""
    return Statement(
        "runs.would_acquire",
        _WOULD_ACQUIRE,
        lambda r: bool(r.scalar_one()),
        {"tenant_id": tenant_id, "key": key, "fingerprint": fingerprint},
    )
