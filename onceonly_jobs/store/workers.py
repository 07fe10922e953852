"""What each worker says of itself, and what waits that it should have been given."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from onceonly_jobs.store.statement import Statement, count, many

FORGOTTEN_AFTER_S = 3600
"""A worker that ended without a word is listed for so long."""


class WorkerState(StrEnum):
    SERVING = "serving"
    DRAINING = "draining"
    """it was told to end, takes no more runs, and finishes those that it has"""
    STUCK = "stuck"
    """it gets no messages although runs wait for it, and ends itself"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A worker at this moment, in its own words."""

    id: str
    name: str
    hostname: str
    pid: int
    queues: list[str]
    concurrency: int
    state: WorkerState
    active: int
    """messages that it has and is not done with"""
    message_age_s: float | None
    """since the last message; None: there was none yet"""
    last_claim_at: datetime | None


# Workers that are long gone are forgotten by those that are not; rows that another one is at are left to it.
_REPORT = sa.text(f"""
WITH gone AS (
    DELETE FROM workers WHERE id IN (
        SELECT id FROM workers WHERE seen_at < onceonly_now() - interval '{FORGOTTEN_AFTER_S} seconds' AND id <> :id
        LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO workers (id, name, hostname, pid, queues, concurrency, state, active, last_message_at, last_claim_at)
VALUES (:id, :name, :hostname, :pid, :queues, :concurrency, :state, :active,
        onceonly_now() - make_interval(secs => CAST(:message_age_s AS double precision)), :last_claim_at)
ON CONFLICT (id) DO UPDATE SET seen_at = onceonly_now(), queues = excluded.queues, state = excluded.state,
    concurrency = excluded.concurrency, active = excluded.active, last_message_at = excluded.last_message_at,
    last_claim_at = excluded.last_claim_at
""")


def report(worker: WorkerReport) -> Statement[int]:
    """Write down how a worker does."""
    values = {name: getattr(worker, name) for name in WorkerReport.__slots__}
    return Statement("workers.report", _REPORT, count, {**values, "state": worker.state.value})


_FORGET = sa.text("DELETE FROM workers WHERE id = :id")


def forget(worker_id: str) -> Statement[int]:
    """A worker has ended in order."""
    return Statement("workers.forget", _FORGET, count, {"id": worker_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedWorker:
    id: str
    name: str
    hostname: str
    pid: int
    queues: list[str]
    concurrency: int
    state: str
    active: int
    started_at: datetime
    seen_at: datetime
    unseen_s: float
    last_message_at: datetime | None
    last_claim_at: datetime | None


_LIST = sa.text("""
SELECT id, name, hostname, pid, queues, concurrency, state, active, started_at, seen_at, last_message_at,
       last_claim_at, extract(epoch FROM onceonly_now() - seen_at)::double precision AS unseen_s
FROM workers ORDER BY started_at, id
""")


def listed() -> Statement[list[ListedWorker]]:
    """All workers that have not ended in order, longest at work first."""
    return Statement("workers.listed", _LIST, many(lambda row: ListedWorker(**row)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved:
    """Published runs that nobody claims."""

    runs: int
    published_ago_s: float | None
    """since the latest of their publications; None: there are no such runs"""


# A publication leaves behind when the next one is due, and so when it was itself. The index of queued runs is in
# that order, and what is due later than any doubling allows was never published.
_UNSERVED = sa.text("""
SELECT count(*) AS runs, CAST(extract(epoch FROM onceonly_now() - max(published_at)) AS double precision)
    AS published_ago_s
FROM (
    SELECT publish_at - make_interval(
        secs => least(300, CAST(:grace_s AS double precision) * 2 ^ least(publications - 1, 9))) AS published_at
    FROM runs
    WHERE state = 'queued' AND owner = 'server' AND publications > 0
        AND publish_at <= onceonly_now() + interval '300 seconds'
        AND due_at <= onceonly_now() - make_interval(secs => CAST(:waiting_s AS double precision))
        AND queue = ANY (CAST(:queues AS text[])) AND job = ANY (CAST(:jobs AS text[]))
    ORDER BY publish_at DESC LIMIT 1000
) waiting
""")


def unserved(
    queues: Collection[str], jobs: Collection[str], waiting_s: float, grace_s: float
) -> Statement[Unserved]:
    """The runs of these queues and jobs that have been due for waiting_s, were published, and are not claimed.

    grace_s: the relay's pause after a first publication.
    """
    return Statement(
        "workers.unserved",
        _UNSERVED,
        lambda r: Unserved(**r.mappings().one()),
        {"queues": sorted(queues), "jobs": sorted(jobs), "waiting_s": waiting_s, "grace_s": grace_s},
    )
