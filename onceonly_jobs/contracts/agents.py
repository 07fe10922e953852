"""/agents: the kill switch, the log and the metrics of an agent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from onceonly_jobs.contracts.fields import Label, Wire, example


class SwitchRequest(Wire):
    """Why. The body may be empty or absent."""

    model_config = example(reason="unusual spending")

    reason: Label | None = None


class SwitchAnswer(BaseModel):
    agent_id: str
    is_enabled: bool
    disabled_reason: str | None
    disabled_at: str | None
    stopped_queued: int | None = None
    stopping_running: int | None = None


class LogItem(BaseModel):
    """One decision, with its outcome folded in."""

    ts: int
    agent_id: str | None
    tool: str
    allowed: bool
    decision: str
    policy_reason: str
    reason: str
    policy_code: str
    risk_level: str
    args_hash: str | None
    spend_usd: float
    key: str | None
    outcome: str | None
    policy_version: int | None
    actor: str | None


Period = Literal["hour", "day", "week"]


class AgentMetrics(BaseModel):
    agent_id: str
    period: Period
    total_actions: int
    blocked_actions: int
    total_spend_usd: float
    top_tools: list[dict[str, Any]]
