"""POST /ai/run: a run by key, or a governed tool call. Exactly one of the two."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, Self

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from onceonly_jobs.contracts.fields import (
    Fingerprint,
    JsonObject,
    Key,
    Metadata,
    Text,
    Ttl,
    Wire,
    example,
    usable,
)
from onceonly_jobs.domain.actions import as_bool, has_actions
from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.governance import MAX_USD

Name = Annotated[Text, Field(min_length=1, max_length=256)]


def priced(metadata: dict[str, Any]) -> dict[str, Any]:
    """metadata.spend_usd, where given, must be an amount of money."""
    spend = metadata.get("spend_usd")
    if spend is None:
        return metadata
    if isinstance(spend, bool) or not isinstance(spend, int | float) or not 0 <= spend <= MAX_USD:
        raise ValueError(f"metadata.spend_usd must be a number from 0 to {MAX_USD:.0f}")
    return metadata


def _comparable(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments by which a repeat of the call can be told."""
    args_hash(args)
    return args


Spend = Annotated[float, Field(ge=0, le=MAX_USD, allow_inf_nan=False)]


class PlannedCall(TypedDict):
    """One of `metadata.actions`: a tool call that the run is to make."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    tool: Annotated[Name, Field(pattern=r"\S")]
    args: NotRequired[Annotated[dict[str, Any], AfterValidator(_comparable)] | None]
    spend_usd: NotRequired[Spend | None]


class _Planning(TypedDict):
    """What metadata says of actions; the rest of it is the caller's."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    actions: NotRequired[list[PlannedCall] | None]


class _WithActions:
    """Checks `actions` inside a dictionary that is otherwise free, so that what is wrong is named by its place."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.chain_schema([handler(source), handler.generate_schema(_Planning)])


def _planned(metadata: dict[str, Any]) -> dict[str, Any]:
    """Actions need an agent, are a job of their own, and are called or not called beyond doubt."""
    if not has_actions(metadata):
        return metadata
    if metadata.get("agent_id") is None:
        raise ValueError("metadata.actions need metadata.agent_id: the agent under which they run")
    if metadata.get("task") is not None:
        raise ValueError("metadata.actions are a job of their own: give them or metadata.task")
    try:
        as_bool(metadata.get("dry_run"))
    except ValueError as error:
        raise ValueError(f"metadata.dry_run: {error}") from None
    return metadata


class RunRequest(Wire):
    """Shape A has `key`; shape B has `agent_id` and `tool`."""

    model_config = example(key="report:daily:2026-03-01", ttl=1800, metadata={"task": "daily_summary"})

    key: Key | None = None
    ttl: Ttl | None = None
    metadata: (
        Annotated[
            Metadata,
            AfterValidator(usable("run_id", "agent_id", "task")),
            AfterValidator(priced),
            _WithActions(),
            AfterValidator(_planned),
        ]
        | None
    ) = None
    fingerprint: Fingerprint | None = None
    agent_id: Name | None = None
    tool: Name | None = None
    args: JsonObject | None = None
    spend_usd: Spend | None = None

    @model_validator(mode="after")
    def _exactly_one_shape(self) -> Self:
        by_tool = self.agent_id is not None or self.tool is not None
        if (self.key is not None) == by_tool:
            raise ValueError("give either key, or agent_id and tool")
        if by_tool and (self.agent_id is None or self.tool is None):
            raise ValueError("a tool call needs both agent_id and tool")
        return self
