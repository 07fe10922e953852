"""How the relay gets due runs out, and takes back what dead workers held."""

from __future__ import annotations

from onceonly_jobs.store import outbox as store
from onceonly_jobs.store.outbox import Death as Death
from onceonly_jobs.store.outbox import Due, Reaped
from onceonly_jobs.store.planning import by_ordered_index
from onceonly_jobs.store.statement import Operation, autocommit


@autocommit
def reap(batch: int, retention_s: int) -> Operation[list[Reaped]]:
    """Take the runs of dead workers back."""
    return (yield from store.reap(batch, retention_s))


@autocommit
def died(death: Death, run: int, retention_s: int, *, others: bool = False) -> Operation[list[Reaped]]:
    """Take back what a process held that is known to be dead: this run, and with `others` all else."""
    return (yield from store.died(death, run, retention_s, others=others))


def take_due(batch: int, grace_s: float, full_queues: list[str]) -> Operation[list[Due]]:
    """Due runs to publish now; those of full queues stay where they are."""
    yield from by_ordered_index()
    return (yield from store.take_due(batch, grace_s, full_queues))


@autocommit
def republish_all() -> Operation[int]:
    """Forget every publication: the broker was wiped."""
    return (yield from store.republish_all())


@autocommit
def publish_again(run: int) -> Operation[bool]:
    """Have a due run published at once, since the worker that has its message will not take it."""
    return (yield from store.publish_again(run))
