"""Workers as they see themselves, and as an operator sees them."""

from __future__ import annotations

from collections.abc import Collection

from onceonly_jobs.store import workers as store
from onceonly_jobs.store.statement import Operation, autocommit, read_only
from onceonly_jobs.store.workers import ListedWorker, Unserved, WorkerReport, WorkerState

__all__ = [
    "REPORT_S",
    "ListedWorker",
    "Unserved",
    "WorkerReport",
    "WorkerState",
    "forget",
    "is_lost",
    "listed",
    "report",
    "unserved",
]

REPORT_S = 5.0
"""How often a worker reports."""
LOST_AFTER_S = 4 * REPORT_S


@autocommit
def report(worker: WorkerReport) -> Operation[None]:
    """Write down how a worker does; forget those that have long been silent."""
    yield from store.report(worker)


@autocommit
def forget(worker_id: str) -> Operation[None]:
    """A worker has ended in order."""
    yield from store.forget(worker_id)


@read_only
def listed() -> Operation[list[ListedWorker]]:
    """All workers that have not ended in order."""
    return (yield from store.listed())


@read_only
def unserved(
    queues: Collection[str], jobs: Collection[str], waiting_s: float, grace_s: float
) -> Operation[Unserved]:
    """The published runs of these queues and jobs that nobody has claimed for waiting_s seconds."""
    return (yield from store.unserved(queues, jobs, waiting_s, grace_s))


def is_lost(worker: ListedWorker) -> bool:
    """Whether a worker has not been heard of for so long that it is gone, or has lost the database."""
    return worker.unseen_s > LOST_AFTER_S
