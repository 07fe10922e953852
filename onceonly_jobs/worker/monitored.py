"""What Celery's monitors are told of runs that were claimed without a message."""

from __future__ import annotations

import random
import uuid
from typing import Any

from celery import bootsteps

from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.worker.lifecycle import Fate, Outcome

EventFields = tuple[str, dict[str, Any]]

LOOK_S = 1.0
_AGAIN = frozenset((Fate.RETRIED, Fate.HANDED_BACK, Fate.UNREACHABLE))
_GOOD = frozenset((Fate.COMPLETED, Fate.UNKNOWN))


class WatchedStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets the children know whether the worker sends events, which it may be told while it runs."""

    requires = ("celery.worker.components:Pool",)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        shared = worker.app.onceonly.shared
        shared.watched = bool(worker.app.conf.worker_send_task_events)

        def look() -> None:
            dispatcher = getattr(worker.consumer, "event_dispatcher", None)
            if dispatcher is not None:
                shared.watched = dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)

        hub.call_repeatedly(LOOK_S, look)


def begun_events(claim: Claim, task: str, at: float) -> list[EventFields]:
    """task: an id that the run has for the monitors alone. at: Unix time."""
    shown = {"key": claim.key, "tenant": claim.tenant_id, "agent": claim.agent_id}
    received = {
        "uuid": task,
        "name": claim.job,
        "args": "()",
        "kwargs": repr(shown),
        "root_id": task,
        "parent_id": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timestamp": at,
    }
    return [("task-received", received), ("task-started", {"uuid": task, "timestamp": at})]


def ended_event(outcome: Outcome, task: str, began_at: float, ended_at: float) -> EventFields:
    fate = outcome.fate.name.lower()
    fields: dict[str, Any] = {"uuid": task, "timestamp": ended_at}
    if outcome.fate in _GOOD:
        return "task-succeeded", fields | {"result": repr(fate), "runtime": ended_at - began_at}
    why = {"exception": f"RunFailed({outcome.detail or fate!r})", "traceback": ""}
    return "task-retried" if outcome.fate in _AGAIN else "task-failed", fields | why


def new_task_id() -> str:
    """Like Celery's. Not by the system's randomness, which lets go of the interpreter for each."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))
