"""/schedules: runs by cron expression, interval or at a time. Unknown fields are refused: a misspelt end of a schedule
must not become a missing one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from onceonly_jobs.contracts.fields import JsonObject, Text, Ttl, at_most, example
from onceonly_jobs.contracts.runs import Name, priced

MAX_NAME = 200
PART_BYTES = 30_720
"""Payload and metadata each; together they fit a run's metadata."""
LONGEST_INTERVAL_S = 10 * 366 * 86_400
YEARS = (1970, 2200)
RESERVED = ("task", "agent_id", "payload", "schedule")


def _time(value: object) -> datetime:
    if isinstance(value, datetime):
        at = value
    else:
        try:
            at = datetime.fromisoformat(value if isinstance(value, str) else "")
        except ValueError:
            raise ValueError("must be a time in ISO 8601, like 2026-03-01T06:00:00Z") from None
    if not YEARS[0] <= at.year <= YEARS[1]:
        raise ValueError(f"must be from the year {YEARS[0]} to {YEARS[1]}")
    return at.replace(microsecond=0)


def _own_fields_only(metadata: dict[str, Any]) -> dict[str, Any]:
    for name in RESERVED:
        if name in metadata:
            raise ValueError(f"metadata.{name} is set by the schedule's own fields")
    return metadata


ScheduleName = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=MAX_NAME,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@+-]*$",
        description="Letters, digits and `_.:@+-`. Part of the runs' keys: `cron:<name>:<tick>`.",
    ),
]
Time = Annotated[
    datetime,
    BeforeValidator(_time),
    Field(description="ISO 8601; without an offset it is meant in `tz`. Fractions of a second are cut."),
]
Part = Annotated[JsonObject, AfterValidator(at_most(PART_BYTES))]
ScheduleMetadata = Annotated[Part, AfterValidator(_own_fields_only), AfterValidator(priced)]
TriggerId = Annotated[Text, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9_.@+-]+$")]

MisfireName = Literal["skip", "once", "catch_up"]
OverlapName = Literal["allow", "skip", "cancel_previous"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ScheduleFields(_Strict):
    """What can be said of a schedule. Null is the default."""

    task: Annotated[
        Name | None, Field(description="The job. Default: by key pattern, or the server's default.")
    ] = None
    cron: Annotated[
        Annotated[Text, Field(min_length=1, max_length=256)] | None,
        Field(description="Five fields, six (seconds first), or a macro like `@daily`."),
    ] = None
    every_s: Annotated[int, Field(ge=1, le=LONGEST_INTERVAL_S)] | None = None
    at: Annotated[Time | None, Field(description="Once, at this time.")] = None
    tz: Annotated[
        Annotated[Text, Field(min_length=1, max_length=64)] | None,
        Field(description="IANA time zone of `cron`, and of times without an offset. Default: UTC."),
    ] = None
    start_at: Annotated[Time | None, Field(description="No tick before this.")] = None
    end_at: Annotated[Time | None, Field(description="No tick after this.")] = None
    payload: Annotated[Part | None, Field(description="What the job gets as `ctx.payload`.")] = None
    metadata: ScheduleMetadata | None = None
    agent_id: Annotated[Name | None, Field(description="The agent whose policy decides on each run.")] = None
    queue: Annotated[Name | None, Field(description="One that a registered job uses.")] = None
    ttl: Annotated[Ttl | None, Field(description="Time limit of each run, as of POST /ai/run.")] = None
    misfire: Annotated[
        MisfireName | None,
        Field(
            description="Of ticks missed while no scheduler ran: none, the latest (default), or the latest ones fire."
        ),
    ] = None
    misfire_grace_s: Annotated[
        Annotated[int, Field(ge=0, le=86_400)] | None,
        Field(description="A tick served at most so late was not missed. Default: 5."),
    ] = None
    catch_up_limit: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        Field(description="How many missed ticks `catch_up` fires, the latest. Default: 100."),
    ] = None
    jitter_s: Annotated[
        Annotated[int, Field(ge=0, le=86_400)] | None,
        Field(description="Runs become due up to so much after their tick, each tick always by the same."),
    ] = None
    overlap: Annotated[
        OverlapName | None,
        Field(
            description="While an earlier run is queued or running: fire (default), skip, or cancel that one."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that were sent, nulls included."""
        return {
            name: getattr(self, name) for name in ScheduleFields.model_fields if name in self.model_fields_set
        }

    @model_validator(mode="after")
    def _at_most_one_way(self) -> Self:
        if sum(how is not None for how in (self.cron, self.every_s, self.at)) > 1:
            raise ValueError("give only one of cron, every_s and at")
        return self


class ScheduleRequest(ScheduleFields):
    model_config = example(
        name="daily_report",
        task="daily_report",
        cron="0 6 * * MON-FRI",
        tz="Europe/Kyiv",
        misfire="catch_up",
        catch_up_limit=3,
        payload={"sections": ["orders", "refunds"]},
    )

    name: ScheduleName
    paused: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.cron is None and self.every_s is None and self.at is None:
            raise ValueError("give one of cron, every_s and at")
        return self


class SchedulePatch(ScheduleFields):
    """What is to change. One of `cron`, `every_s` and `at` takes the place of another."""

    model_config = example(cron="0 7 * * *", end_at=None)


class TriggerRequest(_Strict):
    model_config = example(id="after-the-migration")

    id: Annotated[
        TriggerId | None,
        Field(description="Makes repeating the call safe: one run per id. Default: the current second."),
    ] = None


class BackfillRequest(_Strict):
    """A past range, both ends included."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"from": "2026-03-01T00:00:00Z", "to": "2026-03-07T23:59:59Z"}]},
    )

    from_: Annotated[Time, Field(alias="from")]
    to: Time


ScheduleStatus = Literal["active", "paused", "finished"]


class ScheduleAnswer(BaseModel):
    """A schedule as it stands. `edited` names the fields that were changed since the code declared them."""

    name: str
    status: ScheduleStatus
    task: str | None
    cron: str | None
    every_s: int | None
    at: str | None
    tz: str
    start_at: str | None
    end_at: str | None
    payload: dict[str, Any] | None
    metadata: dict[str, Any] | None
    agent_id: str | None
    queue: str | None
    ttl: int | None
    misfire: MisfireName
    misfire_grace_s: int
    catch_up_limit: int
    jitter_s: int
    overlap: OverlapName
    next_tick_at: str | None
    last_tick_at: str | None
    paused_at: str | None
    origin: Literal["code", "api"]
    edited: list[str]
    version: int
    created_at: str
    created_by: str
    updated_at: str
    updated_by: str


class SchedulesAnswer(BaseModel):
    """By name."""

    total: int
    items: list[ScheduleAnswer]


class DeletedScheduleAnswer(BaseModel):
    ok: Literal[True]
    deleted: str


class NextTick(BaseModel):
    """`local` is the tick as the schedule's time zone shows it; `due_at` has the jitter."""

    tick: str
    local: str
    due_at: str
    key: str


class NextAnswer(BaseModel):
    name: str
    items: list[NextTick]


class TickItem(BaseModel):
    """`detail` says why a tick has no run, or none of its own."""

    tick: str
    key: str
    state: Literal["fired", "skipped", "misfired", "refused"]
    source: Literal["scheduler", "trigger", "backfill"]
    detail: str | None
    recorded_at: str


class TicksAnswer(BaseModel):
    """The latest first."""

    name: str
    items: list[TickItem]


class BackfillAnswer(BaseModel):
    """`created` are new runs; the others' keys had a run already. `refused` ones were refused by the agent's policy."""

    ok: Literal[True]
    name: str
    ticks: int
    created: int
    existing: int
    refused: int
    keys: list[str]
