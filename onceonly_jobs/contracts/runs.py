"""POST /ai/run: a run by key, or a governed tool call. Exactly one of the two."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

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


class RunRequest(Wire):
    """Shape A has `key`; shape B has `agent_id` and `tool`."""

    model_config = example(key="report:daily:2026-03-01", ttl=1800, metadata={"task": "daily_summary"})

    key: Key | None = None
    ttl: Ttl | None = None
    metadata: (
        Annotated[Metadata, AfterValidator(usable("run_id", "agent_id", "task")), AfterValidator(priced)]
        | None
    ) = None
    fingerprint: Fingerprint | None = None
    agent_id: Name | None = None
    tool: Name | None = None
    args: JsonObject | None = None
    spend_usd: Annotated[float, Field(ge=0, le=MAX_USD, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _exactly_one_shape(self) -> Self:
        by_tool = self.agent_id is not None or self.tool is not None
        if (self.key is not None) == by_tool:
            raise ValueError("give either key, or agent_id and tool")
        if by_tool and (self.agent_id is None or self.tool is None):
            raise ValueError("a tool call needs both agent_id and tool")
        return self
