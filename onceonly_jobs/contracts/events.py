"""POST /events, and what timelines and feeds answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from onceonly_jobs.contracts.fields import (
    MAX_UNIX_S,
    METADATA_BYTES,
    JsonObject,
    Label,
    RunId,
    Text,
    Wire,
    at_most,
    example,
)

MAX_DURATION_MS = 2**53


class EventRequest(Wire):
    """A caller's own event. Unknown fields are accepted and dropped; keep them under `data`."""

    model_config = example(run_id="report:daily:2026-03-01", type="note", status="ok", message="sent")

    run_id: RunId
    type: Annotated[Label, Field(min_length=1, pattern=r"\S")]
    ts: Annotated[int, Field(ge=0, le=MAX_UNIX_S, description="Unix seconds; default now.")] | None = None
    status: Label | None = None
    step: Label | None = None
    tool: Label | None = None
    req_id: Label | None = None
    lease_id: Label | None = None
    agent_id: Label | None = None
    message: Annotated[Text, Field(max_length=8192)] | None = None
    duration_ms: Annotated[int, Field(ge=0, le=MAX_DURATION_MS)] | None = None
    data: Annotated[JsonObject, AfterValidator(at_most(METADATA_BYTES))] | None = None


class EventAnswer(BaseModel):
    ok: bool
    event_id: int
    run_id: str


class TimelineEvent(BaseModel):
    id: int
    ts: int
    type: str
    status: str | None
    duration_ms: int | None
    step: str | None
    tool: str | None
    req_id: str | None
    lease_id: str | None
    agent_id: str | None
    message: str | None
    data: dict[str, Any]


class TimelineAnswer(BaseModel):
    """A run's events, oldest first."""

    run_id: str
    total: int
    events: list[TimelineEvent]


RunStateName = Literal["queued", "in_progress", "completed", "failed", "cancelled", "unknown", "active"]


class ListedRun(BaseModel):
    """A run as it stands. Times are ISO 8601."""

    key: str
    state: str
    owner: str
    job: str | None
    agent_id: str | None
    attempt: int
    max_attempts: int
    failures: Annotated[int, Field(description="Starts that ended by an exception or the time limit.")]
    crashes: Annotated[int, Field(description="Starts that ended with their worker.")]
    max_crashes: int
    progress: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    first_seen_at: str
    due_at: str | None
    started_at: str | None
    done_at: str | None


class TimelineHead(BaseModel):
    run_id: str
    last_ts: int
    last_type: str
    last_status: str | None
    events_count: int
    run: (
        Annotated[ListedRun, Field(description="Only where runs were asked for by what they are.")] | None
    ) = None


class TimelinesAnswer(BaseModel):
    """Runs, latest activity first."""

    total: int
    items: list[TimelineHead]


class FeedItem(BaseModel):
    id: int
    ts: int
    type: str
    kind: str | None
    key: str | None
    status: str | None
    agent_id: str | None
    tool: str | None
    message: str | None
    data: dict[str, Any]
