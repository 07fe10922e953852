"""Taking a key, for the caller's own work or as a job for a worker; and reading what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.domain.states import Owner
from onceonly_jobs.store.events import elapsed_ms, event_row, recording
from onceonly_jobs.store.governance import REASON, RESERVE, VERDICT
from onceonly_jobs.store.rows import RETAINED, RUN_COLUMNS, to_run
from onceonly_jobs.store.statement import Statement, one_or_none
from onceonly_jobs.store.usage import MONTH_USAGE, counting, slot
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
    acting: bool = False
    """It makes tool calls, each of which is judged by itself: of the run only the kill switch is asked."""

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


# The key is free: retention is over, a cancelled run has let go, or a caller's lease has run out.
FREE = """(
    (r.state IN ('completed', 'failed') AND r.retain_until_at <= onceonly_now())
    OR (r.state = 'cancelled'
        AND (r.owner = 'caller' OR r.lease_until_at IS NULL OR r.lease_until_at <= onceonly_now()))
    OR (r.state = 'failed' AND r.repeatable)
    OR (r.state = 'in_progress' AND r.owner = 'caller' AND r.lease_until_at <= onceonly_now()
        AND coalesce(r.fingerprint = CAST(:fingerprint AS text), true))
)"""

_FRESH = "r.state IN ('completed', 'failed')"

_COLUMNS = """tenant_id, key, owner, state, fencing_token, run_id, agent_id, fingerprint, metadata, lease_id,
    lease_ttl_s, lease_until_at, job, tool, queue, max_attempts, due_at, publish_at, first_seen_at, started_at,
    decision_id, reserved_micro_usd, reserved_at, error_code, error_message, done_at, retain_until_at,
    traceparent, schedule"""

_REPLACED = ", ".join(
    f"{name} = excluded.{name}"
    for name in (part.strip() for part in _COLUMNS.split(","))
    if name not in ("tenant_id", "key", "fencing_token", "first_seen_at")
)

_CLEARED = ", ".join(
    f"{name} = NULL"
    for name in "worker_lease_id deadline_at progress result result_hash error_hash effect retention_s".split()
)

_ALLOWED = "v.code = 'ok'"

_UNGOVERNED = "SELECT 'ok' AS code, CAST(0 AS bigint) AS cost, CAST(NULL AS integer) AS policy_version"

_SWITCHED_ON = """
    SELECT CASE WHEN a.disabled_at IS NULL THEN 'ok' ELSE 'agent_disabled' END AS code, CAST(0 AS bigint) AS cost,
           a.policy_version
    FROM agents a WHERE a.tenant_id = :tenant_id AND a.agent_id = :agent_id"""


def _take(verdict: str, reserve: str, *, acting: bool = False) -> sa.TextClause:
    """The statement that takes a key. A refused run takes its key too: as failed, and charged to nobody.

    acting: the run is no call of its own, so no list of tools names it, no window has anything of it, and that it
    was let in is none of the agent's actions.
    """
    tool, reserved_at, let_in_as = "CAST(:job AS text)", "onceonly_now()", "won.agent_id"
    if acting:
        tool = reserved_at = "NULL"
        let_in_as = f"CASE WHEN NOT {_ALLOWED} THEN won.agent_id END"
    server, allowed = ":owner = 'server'", _ALLOWED
    return sa.text(f"""
WITH verdict AS MATERIALIZED ({verdict}
), won AS (
    INSERT INTO runs AS r ({_COLUMNS})
    SELECT
        :tenant_id, :key, :owner,
        CASE WHEN :owner = 'caller' THEN 'in_progress' WHEN {allowed} THEN 'queued' ELSE 'failed' END,
        CASE :owner WHEN 'caller' THEN 1 ELSE 0 END, :run_id, CAST(:agent_id AS text),
        CAST(:fingerprint AS text), CAST(:metadata AS json), :lease_id, CAST(:ttl_s AS integer),
        CASE :owner WHEN 'caller' THEN onceonly_now() + make_interval(secs => CAST(:ttl_s AS integer)) END,
        CAST(:job AS text), {tool}, CAST(:queue AS text), CAST(:max_attempts AS integer),
        CASE WHEN {server} AND {allowed} THEN
            onceonly_now() + make_interval(secs => CAST(:delay_s AS double precision)) END,
        CASE WHEN {server} AND {allowed} THEN
            onceonly_now() + make_interval(secs => CAST(:publish_in_s AS double precision)) END,
        onceonly_now(), CASE :owner WHEN 'caller' THEN onceonly_now() END,
        CASE :owner WHEN 'server' THEN nextval('audit_decisions_id_seq') END,
        CASE WHEN {allowed} THEN v.cost ELSE 0 END,
        CASE WHEN {server} AND {allowed} THEN CAST({reserved_at} AS timestamptz) END,
        CASE WHEN NOT {allowed} THEN 'policy_blocked' END, CASE WHEN NOT {allowed} THEN v.code END,
        CASE WHEN NOT {allowed} THEN onceonly_now() END,
        CASE WHEN NOT {allowed} THEN
            onceonly_now() + make_interval(secs => CAST(:retention_s AS integer)) END,
        CAST(:traceparent AS text), CAST(:schedule AS text)
    FROM verdict v
    ON CONFLICT (tenant_id, key) DO UPDATE SET
        {_REPLACED}, {_CLEARED}, attempt = 0, publications = 0, dead_lettered = false, repeatable = false,
        fencing_token = r.fencing_token + excluded.fencing_token,
        version = CASE WHEN {_FRESH} THEN 1 ELSE r.version + 1 END,
        first_seen_at = CASE WHEN {_FRESH} THEN excluded.first_seen_at ELSE r.first_seen_at END
    WHERE {FREE}
    RETURNING r.*
), answer AS (
    SELECT CASE won.state WHEN 'failed' THEN 'refused' ELSE 'acquired' END AS outcome, won.* FROM won
    UNION ALL
    SELECT CASE WHEN r.fingerprint <> CAST(:fingerprint AS text) THEN 'mismatch' ELSE 'held' END, r.*
    FROM runs r
    WHERE r.tenant_id = :tenant_id AND r.key = :key AND NOT {FREE} AND NOT EXISTS (SELECT FROM won)
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
    SELECT decision_id, won.tenant_id, CAST(:actor AS text), {let_in_as}, job, key, {allowed},
           CASE WHEN {allowed} THEN 'executed' ELSE 'blocked' END, {REASON}, v.code, :risk_level,
           reserved_micro_usd, v.policy_version
    FROM won, verdict v WHERE owner = 'server'
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
    FROM won
)
SELECT outcome, {RUN_COLUMNS},
       {MONTH_USAGE} + CASE outcome WHEN 'acquired' THEN 1 ELSE 0 END AS month_usage
FROM answer
""")


_TAKE = _take(_UNGOVERNED, "")
_TAKE_GOVERNED = _take(
    VERDICT.replace(":tool", ":job"),
    f"reserved AS ({RESERVE.replace(':tool', ':job')} AND EXISTS (SELECT FROM won)),"
    f"{limits('verdict', 'CAST(:job AS text)', 'EXISTS (SELECT FROM won)')},",
)
_TAKE_ACTING = _take(_SWITCHED_ON, "", acting=True)


def take(taking: Taking) -> Statement[Taken | None]:
    """Put a new lease or queued run under a free key; count the request, record decision and event.

    A governed one is judged in the same statement, and its cost reserved; `agents.lock` must come before it in
    the same transaction.

    None when another transaction changed the key after this statement's snapshot: nothing was changed or
    counted, and asking again sees that transaction's row.
    """
    params = {
        "tenant_id": taking.tenant_id,
        "key": taking.key,
        "owner": taking.owner.value,
        "lease_id": taking.lease_id,
        "ttl_s": taking.ttl_s,
        "run_id": taking.run_id,
        "metadata": None if taking.metadata is None else compact_json(taking.metadata).decode(),
        "fingerprint": taking.fingerprint,
        "agent_id": taking.agent_id,
        "actor": taking.actor,
        "job": taking.job,
        "queue": taking.queue,
        "max_attempts": taking.max_attempts,
        "risk_level": taking.risk_level,
        "delay_s": taking.delay_s,
        "publish_in_s": taking.delay_s + taking.publish_grace_s,
        "kind": Kind.AI.value,
        "slot": taking.slot,
        "retention_s": taking.retention_s,
        "traceparent": traceparent(),
        "schedule": taking.schedule,
    }
    name, query = "runs.take", _TAKE
    if taking.acting:
        name, query = "runs.take_acting", _TAKE_ACTING
    elif taking.governed:
        name, query = "runs.take_governed", _TAKE_GOVERNED
        params["spend_micro_usd"] = taking.spend_micro_usd
    return Statement(
        name,
        query,
        one_or_none(lambda row: Taken(row["outcome"], to_run(row), row["month_usage"])),
        params,
    )


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
