"""The run row as its own outbox: what is due goes out to the broker, what a dead worker held comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.store.events import elapsed_ms, event_row
from onceonly_jobs.store.rows import (
    CONFIRM_LATER,
    FINISH,
    REPEATABLE,
    finished,
    held_unknown,
    retried,
    with_error,
)
from onceonly_jobs.store.statement import Statement, count


def _crashed(event: str, why: str, *, more: str = "") -> str:
    """CTEs that count a crash for the runs of `gone` (locked, with id and lost_at), and the SELECT of what they became.

    event: the type of the event that tells of it. why: SQL for what is known of it. more: of that as well, as in
    `with_error`.
    """
    gone = event_row(
        f"'{event}'",
        "'lost'",
        source="taken_back",
        at="lost_at",
        message=why,
        duration=elapsed_ms("started_at", "lost_at"),
    )
    counted = "crashes = crashes + 1, errors = " + with_error("'crash'", "'worker_lost'", why, more=more)
    ended = finished("lost", also=(gone, retried("'worker lost'"), held_unknown("held")), told="taken_back")
    return f"""
requeued AS (
    UPDATE runs r SET state = 'queued', version = version + 1, lease_until_at = NULL, deadline_at = NULL,
        error_code = 'worker_lost', error_message = {why}, due_at = onceonly_now(), publish_at = onceonly_now(),
        {counted}
    FROM gone WHERE r.id = gone.id AND crashes + 1 < max_crashes AND {REPEATABLE}
    RETURNING r.*, lost_at
), lost AS (
    UPDATE runs r SET state = 'failed', error_code = 'worker_lost', dead_lettered = effect IS NULL,
        error_message = {why}, repeatable = effect IS NOT NULL, {counted}, {FINISH}
    FROM gone WHERE r.id = gone.id AND crashes + 1 >= max_crashes AND {REPEATABLE}
    RETURNING r.*, lost_at
), held AS (
    UPDATE runs r SET state = 'unknown', version = version + 1, lease_until_at = NULL, publish_at = NULL,
        error_code = 'outcome_unknown', error_message = 'the worker was lost during the call', {counted},
        {CONFIRM_LATER}
    FROM gone WHERE r.id = gone.id AND NOT {REPEATABLE}
    RETURNING r.*, lost_at
), taken_back AS (
    SELECT * FROM requeued UNION ALL SELECT * FROM lost UNION ALL SELECT * FROM held
), {ended}
SELECT tenant_id, key, state FROM taken_back"""


# The event is dated by the last heartbeat's end, whenever somebody came to look.
_REAP = sa.text(f"""
WITH gone AS (
    SELECT id, lease_until_at AS lost_at FROM runs
    WHERE state = 'in_progress' AND owner = 'server' AND lease_until_at <= onceonly_now()
    ORDER BY lease_until_at LIMIT :batch FOR UPDATE SKIP LOCKED
), {_crashed("lease_expired", "'no heartbeat: the lease of its worker expired'")}
""")


@dataclass(frozen=True, slots=True)
class Reaped:
    tenant_id: str
    key: str
    finished: bool


def _reaped(result: sa.CursorResult[Any]) -> list[Reaped]:
    return [Reaped(row.tenant_id, row.key, row.state != "queued") for row in result]


def reap(batch: int, retention_s: int) -> Statement[list[Reaped]]:
    """Take expired claims back, as crashes: queued again, or failed as dead letters after `max_crashes` of them."""
    return Statement("outbox.reap", _REAP, _reaped, {"batch": batch, "retention_s": retention_s})


# The lease is no part of the guard: who holds it is known to be dead. What had ended before that stays as it is.
_DIED = sa.text(f"""
WITH gone AS (
    SELECT id, onceonly_now() - interval '1 microsecond' AS lost_at FROM runs
    WHERE state = 'in_progress' AND owner = 'server' AND lease_until_at IS NOT NULL
        AND worker_id = :worker_id AND worker_pid = :pid AND (id = :run OR CAST(:others AS boolean))
    ORDER BY id FOR UPDATE
), let_go AS (
    UPDATE runs SET lease_until_at = onceonly_now()
    WHERE id = :run AND state = 'cancelled' AND owner = 'server' AND lease_until_at > onceonly_now()
        AND worker_id = :worker_id AND worker_pid = :pid
), {_crashed("worker_lost", "CAST(:why AS text)", more=", 'signal', CAST(:signal AS integer)")}
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """What is known of the end of a worker's process."""

    worker_id: str
    pid: int
    why: str
    signal: int | None = None


def died(death: Death, run: int, retention_s: int, *, others: bool) -> Statement[list[Reaped]]:
    """Take back at once, as a crash, the run that a dead process held; a cancelled one lets go of its key.

    others: and whatever else it held. Only of a process that ran one handler at a time.
    """
    return Statement(
        "outbox.died",
        _DIED,
        _reaped,
        {
            "worker_id": death.worker_id,
            "pid": death.pid,
            "why": death.why,
            "signal": death.signal,
            "run": run,
            "others": others,
            "retention_s": retention_s,
        },
    )


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
WITH due AS (
    SELECT id FROM runs WHERE state = 'queued' AND due_at <= onceonly_now() ORDER BY id FOR UPDATE
)
UPDATE runs r SET publish_at = onceonly_now(), publications = 0 FROM due WHERE r.id = due.id
""")


def republish_all() -> Statement[int]:
    """Make every due run publishable at once: the broker has lost what it held."""
    return Statement("outbox.republish_all", _REPUBLISH, count)


_AGAIN = sa.text("""
UPDATE runs SET publish_at = onceonly_now()
WHERE id = :id AND state = 'queued' AND due_at <= onceonly_now() AND publish_at > onceonly_now()
""")


def publish_again(run: int) -> Statement[bool]:
    """Make one due run publishable at once: its message went to a worker that does not take it."""
    return Statement("outbox.publish_again", _AGAIN, lambda r: bool(r.rowcount), {"id": run})
