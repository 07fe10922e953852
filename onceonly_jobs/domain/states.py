"""The states of a run, and which moves are legal. docs/STATES.md draws the same picture."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    QUEUED = "queued"
    """accepted and durable; a worker may claim it once it is due"""
    IN_PROGRESS = "in_progress"
    """someone holds a lease on it: a worker, or the caller of /ai/lease"""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """given up without an outcome; readers see `failed` with the code `cancelled`"""
    UNKNOWN = "unknown"
    """a call that may have happened and can't be repeated: held until that is settled"""


class Owner(StrEnum):
    """Whose lease a run lives under."""

    CALLER = "caller"
    """/ai/lease: the caller does the work; nobody re-queues it"""
    SERVER = "server"
    """/ai/run and enqueue: a worker does the work; an expired claim is re-queued"""


MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.IN_PROGRESS, RunState.FAILED, RunState.CANCELLED}),
    RunState.IN_PROGRESS: frozenset(
        {
            RunState.QUEUED,
            RunState.IN_PROGRESS,
            RunState.COMPLETED,
            RunState.FAILED,
            RunState.CANCELLED,
            RunState.UNKNOWN,
        }
    ),
    RunState.UNKNOWN: frozenset({RunState.COMPLETED, RunState.FAILED}),
    RunState.COMPLETED: frozenset({RunState.QUEUED, RunState.IN_PROGRESS}),
    RunState.FAILED: frozenset({RunState.QUEUED, RunState.IN_PROGRESS}),
    RunState.CANCELLED: frozenset({RunState.QUEUED, RunState.IN_PROGRESS}),
}
"""From the three finished states a run only moves when its key is used again: after the retention time, or
at once for a cancelled one."""

FINISHED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})
