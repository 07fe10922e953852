"""GET /ai/unknown and POST /ai/settle: calls that may have happened, and what was found out about them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onceonly_jobs.contracts.fields import JsonObject, Key, Wire
from onceonly_jobs.domain.governance import MAX_USD


class SettleRequest(Wire):
    """What became of a call. A settlement can't be taken back, so unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"key": "tool:pay:5d41", "happened": True, "result": {"paid": True}}]
        },
    )

    key: Key
    happened: Annotated[bool, Field(description="Whether the tool carried the call out.")]
    result: (
        Annotated[JsonObject, Field(description="What it answered: repeats of the call get this.")] | None
    ) = None
    cost_usd: (
        Annotated[
            float,
            Field(
                ge=0,
                le=MAX_USD,
                allow_inf_nan=False,
                description="What it really cost. Default: the result's `cost_usd`, else what was reserved.",
            ),
        ]
        | None
    ) = None
    decision_id: (
        Annotated[
            int,
            Field(
                ge=1,
                le=2**63 - 1,
                description="As listed: settles this call of the key, and never a later one.",
            ),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _nothing_came_of_nothing(self) -> Self:
        if not self.happened and (self.result is not None or self.cost_usd is not None):
            raise ValueError("a call that did not happen has no result and no cost_usd")
        return self


class UnknownItem(BaseModel):
    """A call that may have happened. `idempotency_key` is what the tool knows it by; `confirm_at` when its confirmer is
    asked next, if it has one and that has not been asked often enough."""

    key: str
    agent_id: str
    tool: str
    effect: str
    args: dict[str, Any]
    run_id: str
    since: str
    message: str | None
    reserved_usd: float
    decision_id: int
    idempotency_key: str
    confirmations: int
    confirm_at: str | None


class UnknownAnswer(BaseModel):
    """Calls whose outcome is unknown, oldest first."""

    total: int
    items: list[UnknownItem]


class SettleAnswer(BaseModel):
    """The settlement that stands."""

    ok: Literal[True]
    status: Literal["settled"]
    key: str
    happened: bool
    outcome: Literal["completed", "failed"]
    error_code: str | None
    result: dict[str, Any] | None
    version: int
    decision_id: int
    settled_by: str
    settled_at: str
