"""Dead letters: runs that failed for good and wait for somebody's decision, to replay or to discard them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.states import RunState
from onceonly_jobs.store.events import Event, event_row, recording
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.rows import LATEST_DECISION, RETAINED
from onceonly_jobs.store.statement import Statement, many, one_or_none

# Past its retention a key is free, and whoever takes it next must not find it replayed.
DEAD = "dead_lettered AND state = 'failed' AND retain_until_at > onceonly_now()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which dead letters are looked for; None means any."""

    tenant_id: str | None
    job: str | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    tenant_id: str
    key: str
    run_id: str
    job: str
    queue: str
    agent_id: str | None
    schedule: str | None
    attempt: int
    """How often it was started."""
    max_attempts: int
    failures: int
    crashes: int
    error_code: str | None
    message: str | None
    first_seen_at: datetime
    done_at: datetime
    retain_until_at: datetime
    decision_id: int
    """As LATEST_DECISION."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadDetails:
    """A dead letter, and what is known of how it came to that."""

    letter: DeadLetter
    metadata: dict[str, Any] | None
    result: dict[str, Any] | None
    errors: list[dict[str, Any]]
    """One per start that did not end well, oldest first."""


_COLUMNS = f"""tenant_id, key, run_id, job, queue, agent_id, schedule, attempt, max_attempts, failures, crashes,
    error_code, error_message AS message, first_seen_at, done_at, retain_until_at, {LATEST_DECISION} AS decision_id"""

_OPTIONAL = {"tenant_id": "tenant_id = :tenant_id", "job": "job = :job", "agent_id": "agent_id = :agent_id"}


def _where(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """The conditions that are asked for, and no others: each combination gets a plan of its own."""
    given = {name: value for name in _OPTIONAL if (value := getattr(wanted, name)) is not None}
    return " AND ".join([DEAD, *(_OPTIONAL[name] for name in given)]), given


def letters(wanted: Wanted, limit: int, offset: int) -> Statement[list[DeadLetter]]:
    """A page of the dead letters that match, oldest first."""
    where, params = _where(wanted)
    query = f"SELECT {_COLUMNS} FROM runs WHERE {where} ORDER BY done_at, id LIMIT :limit OFFSET :offset"
    page = {"limit": limit, "offset": offset}
    return Statement("dead.letters", sa.text(query), many(lambda row: DeadLetter(**row)), params | page)


def total(wanted: Wanted) -> Statement[int]:
    """How many dead letters match."""
    where, params = _where(wanted)
    query = sa.text(f"SELECT count(*) FROM runs WHERE {where}")
    return Statement("dead.total", query, lambda r: int(r.scalar_one()), params)


_BY_KEY = sa.text(f"""
SELECT {_COLUMNS}, metadata, result, coalesce(errors, '[]') AS errors FROM runs
WHERE tenant_id = :tenant_id AND key = :key AND {DEAD}
""")


def by_key(tenant_id: str, key: str) -> Statement[DeadDetails | None]:
    """The dead letter under a key; None when there is none."""

    def read(row: sa.RowMapping) -> DeadDetails:
        details = {name: row[name] for name in ("metadata", "result", "errors")}
        letter = {name: row[name] for name in DeadLetter.__slots__}
        return DeadDetails(letter=DeadLetter(**letter), **details)

    return Statement("dead.by_key", _BY_KEY, one_or_none(read), {"tenant_id": tenant_id, "key": key})


# Several runs may share a timeline: these are the events of this one, and those that callers added without a key.
_TAIL = sa.text("""
SELECT id, at, type, status, duration_ms, step, tool, req_id, lease_id, agent_id, message, data FROM (
    SELECT * FROM run_events
    WHERE tenant_id = :tenant_id AND run_id = :run_id AND coalesce(data->>'key', :key) = :key
    ORDER BY at DESC, id DESC LIMIT :limit
) latest ORDER BY at, id
""")


def timeline_tail(letter: DeadLetter, limit: int) -> Statement[list[Event]]:
    """The run's latest events, oldest first."""
    params = {"tenant_id": letter.tenant_id, "run_id": letter.run_id, "key": letter.key, "limit": limit}
    return Statement("dead.timeline_tail", _TAIL, many(lambda row: Event(**row)), params)


# The run goes on under its first decision: what that reserved was booked when it failed, so nothing is reserved or
# metered again, and a handler's effects keep their idempotency keys. Starts are counted on.
_REPLAY = """
WITH dead AS (
    SELECT id, {latest} AS replays FROM runs WHERE {where} {page}
), replayed AS (
    UPDATE runs r SET state = 'queued', version = version + 1, failures = 0, crashes = 0, dead_lettered = false,
        concludes_id = nextval('audit_decisions_id_seq'), due_at = onceonly_now(),
        publish_at = onceonly_now() + make_interval(secs => CAST(:publish_in_s AS double precision)),
        publications = 0, lease_until_at = NULL, worker_lease_id = NULL, deadline_at = NULL, progress = NULL,
        result = NULL, result_hash = NULL, error_code = NULL, error_hash = NULL, error_message = NULL,
        done_at = NULL, retain_until_at = NULL
    FROM dead WHERE r.id = dead.id
    RETURNING r.*, dead.replays
), decided AS (
    INSERT INTO audit_decisions (id, tenant_id, actor, agent_id, tool, run_key, allowed, decision, policy_reason,
                                 policy_code, risk_level, args_hash, policy_version)
    SELECT r.concludes_id, r.tenant_id, CAST(:actor AS text), r.agent_id, r.job, r.key, true, 'replayed',
           'dead_letter_replayed', 'dead_letter_replayed', coalesce(d.risk_level, 'low'), d.args_hash, d.policy_version
    FROM replayed r LEFT JOIN audit_decisions d ON d.id = r.decision_id
), told AS ({told}), {recorded}, fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool, message, data)
    SELECT tenant_id, 'run_replayed', 'ai', key, state, agent_id, job, CAST(:actor AS text),
           json_build_object('decision_id', concludes_id, 'replays', replays)
    FROM replayed
)
SELECT id, tenant_id, key, agent_id, job, queue, due_at FROM replayed
"""


def _replaying(where: str, page: str) -> str:
    actor = ", 'actor', CAST(:actor AS text), 'decision_id', concludes_id, 'replays', replays"
    told = event_row("'run_replayed'", "'queued'", source="replayed", message=":actor", more=actor)
    return _REPLAY.format(
        latest=LATEST_DECISION, where=where, page=page, told=told, recorded=recording("told")
    )


_ONE = f"""tenant_id = :tenant_id AND key = :key AND {DEAD}
        AND (CAST(:decision_id AS bigint) IS NULL OR {LATEST_DECISION} = :decision_id)"""

_REPLAY_ONE = sa.text(_replaying(_ONE, "FOR UPDATE"))


def replay(
    tenant_id: str, key: str, actor: str, decision_id: int | None, publish_in_s: float
) -> Statement[Due | None]:
    """Queue a dead letter again, due now, under a decision of its own. None when there is no such dead letter.

    decision_id: this failure of the run, and no later one. publish_in_s: how long the relay leaves its publication
    to whoever replays it.
    """
    params = {"tenant_id": tenant_id, "key": key, "actor": actor, "decision_id": decision_id}
    read = one_or_none(lambda row: Due(**row))
    return Statement("dead.replay", _REPLAY_ONE, read, {**params, "publish_in_s": publish_in_s})


_BATCH = "AND done_at <= :until"
_PAGE = "ORDER BY done_at, id LIMIT :batch FOR UPDATE SKIP LOCKED"


def replay_batch(wanted: Wanted, until: datetime, batch: int, actor: str) -> Statement[list[Due]]:
    """Queue up to so many dead letters again that failed before `until`, oldest first, for the relay to publish."""
    where, params = _where(wanted)
    query = sa.text(_replaying(f"{where} {_BATCH}", _PAGE))
    more = {"until": until, "batch": batch, "actor": actor, "publish_in_s": 0}
    return Statement("dead.replay_batch", query, many(lambda row: Due(**row)), params | more)


_DISCARD = """
WITH dead AS (
    SELECT id, {latest} AS discards FROM runs WHERE {where} {page}
), discarded AS (
    UPDATE runs r SET dead_lettered = false FROM dead WHERE r.id = dead.id RETURNING r.*, dead.discards
), told AS ({told}), {recorded}, fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool, message, data)
    SELECT tenant_id, 'run_discarded', 'ai', key, state, agent_id, job, CAST(:reason AS text),
           json_build_object('actor', CAST(:actor AS text), 'decision_id', discards)
    FROM discarded
)
SELECT key FROM discarded
"""


def _discarding(where: str, page: str) -> str:
    actor = ", 'actor', CAST(:actor AS text), 'decision_id', discards"
    told = event_row("'run_discarded'", "'failed'", source="discarded", message=":reason", more=actor)
    return _DISCARD.format(
        latest=LATEST_DECISION, where=where, page=page, told=told, recorded=recording("told")
    )


_DISCARD_ONE = sa.text(_discarding(_ONE, "FOR UPDATE"))


def discard(
    tenant_id: str, key: str, actor: str, reason: str | None, decision_id: int | None
) -> Statement[bool]:
    """Let a dead letter be a failed run like any other. False when there is no such dead letter."""
    params = {"tenant_id": tenant_id, "key": key, "actor": actor, "reason": reason}
    return Statement(
        "dead.discard", _DISCARD_ONE, lambda r: r.first() is not None, {**params, "decision_id": decision_id}
    )


def discard_batch(
    wanted: Wanted, until: datetime, batch: int, actor: str, reason: str | None
) -> Statement[int]:
    """`discard` for up to so many that failed before `until`, oldest first; how many."""
    where, params = _where(wanted)
    query = sa.text(_discarding(f"{where} {_BATCH}", _PAGE))
    more = {"until": until, "batch": batch, "actor": actor, "reason": reason}
    return Statement("dead.discard_batch", query, lambda r: len(r.all()), params | more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What somebody decided about a dead letter."""

    run_id: str
    state: RunState
    """How its run stands now."""
    decision_id: int
    """A replay's own decision; for a discarded one, that of the failure."""
    replays: int | None
    """Of a replay: the decision of the failure that it replayed."""
    actor: str
    reason: str | None
    at: datetime


# A decision's id is given once, so events of earlier runs under the same key are not taken for this one's.
_FATE = sa.text(f"""
SELECT r.run_id, r.state, {LATEST_DECISION} AS decision_id, e.replays, e.actor, e.reason, e.at
FROM runs r CROSS JOIN LATERAL (
    SELECT CAST(e.data->>'replays' AS bigint) AS replays, e.data->>'actor' AS actor, e.message AS reason, e.at
    FROM run_events e
    WHERE e.tenant_id = r.tenant_id AND e.run_id = r.run_id AND e.type = :type
        AND e.data->>'decision_id' = greatest(r.concludes_id, r.decision_id)::text
    ORDER BY e.id LIMIT 1
) e
WHERE r.tenant_id = :tenant_id AND r.key = :key AND {RETAINED}
""")


def _fate(type_: str, tenant_id: str, key: str) -> Statement[Fate | None]:
    def read(row: sa.RowMapping) -> Fate:
        return Fate(**{**row, "state": RunState(row["state"])})

    params = {"type": type_, "tenant_id": tenant_id, "key": key}
    return Statement(f"dead.fate_{type_}", _FATE, one_or_none(read), params)


def replayed(tenant_id: str, key: str) -> Statement[Fate | None]:
    """The replay that the run under a key goes on with, or ended with; None when it was never replayed."""
    return _fate("run_replayed", tenant_id, key)


def discarded(tenant_id: str, key: str) -> Statement[Fate | None]:
    """How the latest failure of the run under a key was discarded; None when it was not."""
    return _fate("run_discarded", tenant_id, key)


_NOW = sa.text("SELECT onceonly_now()")


def now() -> Statement[datetime]:
    """The database's time."""

    def read(result: sa.CursorResult[Any]) -> datetime:
        at: datetime = result.scalar_one()
        return at

    return Statement("dead.now", _NOW, read)
