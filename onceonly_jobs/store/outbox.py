"""The run row as its own outbox: what is due goes out to the broker, what a dead worker held comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.store.events import elapsed_ms, event_row
from onceonly_jobs.store.rows import CONFIRM_LATER, FINISH, REPEATABLE, finished, held_unknown, retried
from onceonly_jobs.store.statement import Statement, count

# At the time of the last heartbeat's end, whenever somebody came to look.
_LEASE_EXPIRED = event_row(
    "'lease_expired'",
    "'lost'",
    source="taken_back",
    at="lost_at",
    message="'no heartbeat'",
    duration=elapsed_ms("started_at", "lost_at"),
)

_REAP = sa.text(f"""
WITH expired AS (
    SELECT id, lease_until_at AS lost_at FROM runs
    WHERE state = 'in_progress' AND owner = 'server' AND lease_until_at <= onceonly_now()
    ORDER BY lease_until_at LIMIT :batch FOR UPDATE SKIP LOCKED
), requeued AS (
    UPDATE runs r SET state = 'queued', version = version + 1, lease_until_at = NULL, deadline_at = NULL,
        error_code = 'worker_lost', due_at = onceonly_now(), publish_at = onceonly_now()
    FROM expired WHERE r.id = expired.id AND r.attempt < r.max_attempts AND {REPEATABLE}
    RETURNING r.*, lost_at
), lost AS (
    UPDATE runs r SET state = 'failed', error_code = 'worker_lost', dead_lettered = effect IS NULL,
        error_message = 'the worker''s lease expired on the last attempt', repeatable = effect IS NOT NULL, {
    FINISH
}
    FROM expired WHERE r.id = expired.id AND r.attempt >= r.max_attempts AND {REPEATABLE}
    RETURNING r.*, lost_at
), held AS (
    UPDATE runs r SET state = 'unknown', version = version + 1, lease_until_at = NULL, publish_at = NULL,
        error_code = 'outcome_unknown', error_message = 'the worker was lost during the call',
        {CONFIRM_LATER}
    FROM expired WHERE r.id = expired.id AND NOT {REPEATABLE}
    RETURNING r.*, lost_at
), taken_back AS (
    SELECT * FROM requeued UNION ALL SELECT * FROM lost UNION ALL SELECT * FROM held
), {
    finished("lost", also=(_LEASE_EXPIRED, retried("'worker lost'"), held_unknown("held")), told="taken_back")
}
SELECT tenant_id, key, state FROM requeued UNION ALL SELECT tenant_id, key, state FROM lost
UNION ALL SELECT tenant_id, key, state FROM held
""")


@dataclass(frozen=True, slots=True)
class Reaped:
    tenant_id: str
    key: str
    finished: bool


def reap(batch: int, retention_s: int) -> Statement[list[Reaped]]:
    """Take expired claims back: queued again where attempts are left, otherwise failed as dead letters."""

    def read(result: sa.CursorResult[Any]) -> list[Reaped]:
        return [Reaped(row.tenant_id, row.key, row.state != "queued") for row in result]

    return Statement("outbox.reap", _REAP, read, {"batch": batch, "retention_s": retention_s})


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A run that may be published now."""

    id: int
    tenant_id: str
    key: str
    agent_id: str | None
    job: str
    queue: str
    due_at: datetime


# Skipping locked rows lets any number of relays share the work. The doubling keeps a long backlog from
# filling the broker with copies of itself; 9 doublings of the 2 s grace pass the cap of 5 minutes.
_DUE = sa.text("""
WITH due AS (
    SELECT id FROM runs
    WHERE state = 'queued' AND publish_at <= onceonly_now() AND queue <> ALL (CAST(:full AS text[]))
    ORDER BY publish_at LIMIT :batch FOR UPDATE SKIP LOCKED
)
UPDATE runs r SET publications = publications + 1,
    publish_at = onceonly_now() + make_interval(
        secs => least(300, CAST(:grace_s AS double precision) * 2 ^ least(publications, 9)))
FROM due WHERE r.id = due.id
RETURNING r.id, r.tenant_id, r.key, r.agent_id, r.job, r.queue, r.due_at
""")


def take_due(batch: int, grace_s: float, full_queues: list[str]) -> Statement[list[Due]]:
    """Due runs that nobody has claimed, marked to be looked at again later; for publishing after the commit."""

    def read(result: sa.CursorResult[Any]) -> list[Due]:
        return sorted((Due(**row) for row in result.mappings()), key=lambda due: (due.due_at, due.id))

    return Statement("outbox.take_due", _DUE, read, {"batch": batch, "grace_s": grace_s, "full": full_queues})


_REPUBLISH = sa.text("""
UPDATE runs SET publish_at = onceonly_now(), publications = 0
WHERE state = 'queued' AND due_at <= onceonly_now()
""")


def republish_all() -> Statement[int]:
    """Make every due run publishable at once: the broker has lost what it held."""
    return Statement("outbox.republish_all", _REPUBLISH, count)
