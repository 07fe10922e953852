"""/dead: runs that failed for good, until somebody replays or discards them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onceonly_jobs.contracts.events import TimelineEvent
from onceonly_jobs.contracts.fields import Key, Label, Wire

DecisionId = Annotated[
    int, Field(ge=1, le=2**63 - 1, description="As listed: this failure of the run, and no later one.")
]


class ReplayRequest(Wire):
    """Which dead letter. With `decision_id` a repeat of the request can't replay it a second time."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"key": "report:daily", "decision_id": 42}]}
    )

    key: Key
    decision_id: DecisionId | None = None


class DiscardRequest(Wire):
    """Which dead letter, and why."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"key": "report:daily", "reason": "sent by hand"}]}
    )

    key: Key
    reason: Label | None = None
    decision_id: DecisionId | None = None


class DeadItem(BaseModel):
    """A dead letter. `attempt` counts starts, `failures` and `crashes` how those ended; it can be replayed until
    `retain_until`."""

    key: str
    run_id: str
    task: str
    queue: str
    agent_id: str | None
    schedule: str | None
    attempt: int
    max_attempts: int
    failures: int
    crashes: int
    error_code: str | None
    message: str | None
    first_seen_at: str
    dead_at: str
    retain_until: str
    decision_id: int


class DeadAnswer(BaseModel):
    """Dead letters, oldest first."""

    total: int
    items: list[DeadItem]


class DeadDetailsAnswer(DeadItem):
    """A dead letter with what it was asked for, what is known of each start that did not end well, and the latest
    events of its timeline, oldest first."""

    metadata: dict[str, Any] | None
    result: dict[str, Any] | None
    errors: list[dict[str, Any]]
    events: list[TimelineEvent]


class ReplayAnswer(BaseModel):
    """The replay that stands. `decision_id` is its own, `replays` that of the failure."""

    ok: Literal[True]
    status: Literal["replayed"]
    key: str
    run_id: str
    decision_id: int
    replays: int
    replayed_by: str
    replayed_at: str


class DiscardAnswer(BaseModel):
    """The discarding that stands."""

    ok: Literal[True]
    status: Literal["discarded"]
    key: str
    run_id: str
    decision_id: int
    reason: str | None
    discarded_by: str
    discarded_at: str
