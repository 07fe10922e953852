"""What waits, what runs, and what was decided lately: numbers for operators, each by an index."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from onceonly_jobs.store.dead import DEAD
from onceonly_jobs.store.statement import Statement, many


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The queued runs of a queue."""

    queue: str
    due: int
    delayed: int
    """queued, but not due yet: delayed runs, and retries"""
    oldest_due_s: float
    """how long the first of the due ones has been due"""


# By the partial index of queued runs: what it costs grows with the backlog, not with the table.
_WAITING = sa.text("""
SELECT queue, count(*) FILTER (WHERE due_at <= onceonly_now()) AS due,
       count(*) FILTER (WHERE due_at > onceonly_now()) AS delayed,
       greatest(0, extract(epoch FROM onceonly_now() - min(due_at)))::double precision AS oldest_due_s
FROM runs WHERE state = 'queued' GROUP BY queue
""")


def waiting() -> Statement[list[Waiting]]:
    """How much waits, by queue; a queue where nothing waits is missing."""
    return Statement("figures.waiting", _WAITING, many(lambda row: Waiting(**row)))


_RUNNING = sa.text("""
SELECT job, count(*) AS runs FROM runs WHERE state = 'in_progress' AND owner = 'server' GROUP BY job
""")


def running() -> Statement[dict[str, int]]:
    """How many runs workers hold, by job."""
    return Statement("figures.running", _RUNNING, lambda r: {row.job: row.runs for row in r})


_WORKERS = sa.text("""
SELECT state, count(*) AS workers FROM workers
WHERE seen_at > onceonly_now() - make_interval(secs => CAST(:seen_s AS double precision)) GROUP BY state
""")


def workers(seen_s: float) -> Statement[dict[str, int]]:
    """How many workers have reported within seen_s seconds, by state."""
    return Statement(
        "figures.workers", _WORKERS, lambda r: {row.state: row.workers for row in r}, {"seen_s": seen_s}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    relay_lag_s: float
    """how long the run that is first in line has been waiting to be published"""
    unknown: int
    """calls that wait to be settled"""
    dead: int
    """dead letters that wait to be replayed or discarded"""
    tick_overdue_s: float
    """how long the first tick in line has been due"""
    horizon: int
    """the oldest transaction that may still be running: all before it have ended"""


_MOMENT = sa.text(f"""
SELECT coalesce((SELECT greatest(0, extract(epoch FROM onceonly_now() - min(publish_at)))
                 FROM runs WHERE state = 'queued'), 0)::double precision AS relay_lag_s,
       (SELECT count(*) FROM runs WHERE state = 'unknown') AS unknown,
       (SELECT count(*) FROM runs WHERE {DEAD}) AS dead,
       coalesce((SELECT greatest(0, extract(epoch FROM onceonly_now() - s.next_tick_at))
                 FROM schedules s JOIN tenants t ON t.id = s.tenant_id AND t.disabled_at IS NULL
                 WHERE s.next_tick_at IS NOT NULL AND s.paused_at IS NULL AND s.deleted_at IS NULL
                 ORDER BY s.next_tick_at LIMIT 1), 0)::double precision AS tick_overdue_s,
       CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS horizon
""")


def moment() -> Statement[Moment]:
    return Statement("figures.moment", _MOMENT, lambda r: Moment(**r.mappings().one()))


@dataclass(frozen=True, slots=True)
class Decided:
    decision: str
    reason: str
    count: int


# A row has the number of the transaction that wrote it, so what committed between two horizons is read exactly once.
_DECIDED = sa.text("""
SELECT decision, policy_code AS reason, count(*) AS count FROM audit_decisions
WHERE transaction_id >= :since AND transaction_id < :until GROUP BY decision, policy_code
""")


def decided(since: int, until: int) -> Statement[list[Decided]]:
    """The decisions of transactions from `since` on and before `until`."""
    return Statement(
        "figures.decided", _DECIDED, many(lambda row: Decided(**row)), {"since": since, "until": until}
    )


@dataclass(frozen=True, slots=True)
class Ended:
    job: str
    outcome: str
    count: int
    dead_letters: int
    spend_micro_usd: int


# The job is the run's. Where its key was taken again meanwhile, that is not known any more.
_ENDED = sa.text("""
SELECT coalesce(r.job, '') AS job, o.outcome, count(*) AS count,
       count(*) FILTER (WHERE r.dead_lettered) AS dead_letters,
       coalesce(sum(o.spend_micro_usd), 0)::bigint AS spend_micro_usd
FROM audit_outcomes o
JOIN audit_decisions d ON d.id = o.decision_id
LEFT JOIN runs r ON r.tenant_id = d.tenant_id AND r.key = d.run_key AND d.id IN (r.decision_id, r.concludes_id)
WHERE o.transaction_id >= :since AND o.transaction_id < :until GROUP BY 1, 2
""")


def ended(since: int, until: int) -> Statement[list[Ended]]:
    """The runs that transactions from `since` on and before `until` have ended, and what they were charged."""
    return Statement(
        "figures.ended", _ENDED, many(lambda row: Ended(**row)), {"since": since, "until": until}
    )
