"""Forgetting what is old, a batch at a time."""

from __future__ import annotations

from onceonly_jobs.config import Settings
from onceonly_jobs.store import retention
from onceonly_jobs.store.retention import Kept, Kind
from onceonly_jobs.store.statement import Operation, autocommit, read_only

BATCH = 1000
"""Rows that a statement deletes at most: it holds their locks for milliseconds."""


def kept(settings: Settings) -> Kept:
    """How long the settings keep what. Events stay at least as long as the runs that they tell of."""
    events_s = max(settings.event_retention_s, settings.retention_s)
    return Kept(actions_s=settings.retention_s, events_s=events_s)


@autocommit
def prune(kind: Kind, kept: Kept, batch: int) -> Operation[int]:
    """How many old rows of a kind were deleted now; fewer than `batch` when no more are there, or others hold them."""
    return (yield from retention.delete(kind, kept, batch))


@read_only
def prunable(kind: Kind, kept: Kept) -> Operation[int]:
    """How many rows of a kind are old."""
    return (yield from retention.count(kind, kept))
