"""/policies: what an agent may do. Unknown fields are refused: a misspelt limit must not become a missing one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onceonly_jobs.contracts.fields import Text, example
from onceonly_jobs.domain.governance import MAX_USD

MAX_COUNT = 2**53
MOST_ENTRIES = 1000

ToolName = Annotated[Text, Field(min_length=1, max_length=256, pattern=r"\S")]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Usd = Annotated[float, Field(ge=0, le=MAX_USD, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PricingRule(_Strict):
    """What one call of a tool costs at least."""

    tool: ToolName
    price_usd: Usd


class PolicyFields(_Strict):
    """The fields of a policy. Absent: as it is. Null: cleared, so there is no such limit."""

    allowed_tools: Annotated[list[ToolName], Field(max_length=MOST_ENTRIES)] | None = None
    blocked_tools: Annotated[list[ToolName], Field(max_length=MOST_ENTRIES)] | None = None
    max_actions_per_hour: Count | None = None
    max_spend_usd_per_day: Usd | None = None
    max_calls_per_tool: Annotated[dict[ToolName, Count], Field(max_length=MOST_ENTRIES)] | None = None
    pricing_rules: Annotated[list[PricingRule], Field(max_length=MOST_ENTRIES)] | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were sent, nulls included."""
        return self.model_dump(include=set(PolicyFields.model_fields), exclude_unset=True)


class PolicyRequest(PolicyFields):
    model_config = example(
        allowed_tools=["send_email"],
        max_actions_per_hour=100,
        max_spend_usd_per_day=5.0,
        max_calls_per_tool={"send_email": 50},
    )

    agent_id: Annotated[Text, Field(description="Ignored: the path says which agent.")] | None = None


TemplateName = Literal["strict", "moderate", "permissive", "read_only", "support_bot"]


class TemplateRequest(_Strict):
    """A template's fields, replaced where `overrides` has them."""

    model_config = example(template="moderate", overrides={"max_actions_per_hour": 20})

    agent_id: Text | None = None
    template: TemplateName
    overrides: PolicyFields = PolicyFields()


class PolicyAnswer(BaseModel):
    """The policy's fields that are set, and only those."""

    agent_id: str
    policy: dict[str, Any]
    version: int


class PolicyChange(BaseModel):
    """Who did what to the policy or the switch. `policy` is what it became; null where only the switch was moved."""

    ts: int
    actor: str | None
    change: str
    reason: str | None
    version: int
    policy: dict[str, Any] | None
