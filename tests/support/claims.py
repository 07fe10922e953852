"""A claim and a context as a handler would get them, without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.interrupt import Interrupt

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make_claim(**changed: Any) -> Claim:
    fields: dict[str, Any] = {
        "id": 7,
        "tenant_id": "t",
        "key": "k",
        "run_id": "k",
        "job": "j",
        "agent_id": None,
        "lease_id": "wl_1",
        "fencing_token": 1,
        "attempt": 1,
        "max_attempts": 3,
        "metadata": {},
        "deadline_at": NOW + timedelta(seconds=60),
        "claimed_at": NOW,
        "first_seen_at": NOW,
        "decision_id": 11,
    }
    return Claim(**{**fields, **changed})


class Told:
    """What a handler has reported."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str | None, dict[str, Any]]] = []

    def __call__(self, kind: str, message: str | None, data: dict[str, Any]) -> None:
        self.notes.append((kind, message, data))


def make_context(
    claim: Claim | None = None, interrupt: Interrupt | None = None, told: Told | None = None
) -> JobContext:
    return JobContext(claim or make_claim(), told or Told(), interrupt or Interrupt(), lambda: 60.0)
