"""POST /events, and what timelines and feeds answer."""

from __future__ import annotations

from typing import Annotated, Any

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


class TimelineHead(BaseModel):
    run_id: str
    last_ts: int
    last_type: str
    last_status: str | None
    events_count: int


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
