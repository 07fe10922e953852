"""The budget rule as a model: for tests, and for explaining a decision. What decides is the SQL."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from onceonly_jobs.domain.governance import MICRO, Code, micro_usd


@dataclass
class AgentModel:
    """One agent as the rule sees it."""

    policy: dict[str, Any] | None = None
    disabled: bool = False
    hour: datetime | None = None
    hour_actions: int = 0
    day: date | None = None
    day_spend_micro_usd: int = 0
    day_calls: Counter[str] = field(default_factory=Counter)

    def decide(self, tool: str, spend_usd: float, now: datetime) -> Code:
        """Judge a call, and count and reserve it if it is allowed."""
        self._roll(now)
        policy, cost = self.policy or {}, self.cost_micro_usd(tool, spend_usd)
        code = self._judge(policy, tool, cost)
        if code is Code.OK:
            self.hour_actions += 1
            self.day_calls[tool] += 1
            self.day_spend_micro_usd += cost
        return code

    def _judge(self, policy: dict[str, Any], tool: str, cost: int) -> Code:
        if self.disabled:
            return Code.AGENT_DISABLED
        if tool in policy.get("blocked_tools", []):
            return Code.EXPLICITLY_BLOCKED
        if "allowed_tools" in policy and tool not in policy["allowed_tools"]:
            return Code.NOT_IN_ALLOWED_LIST
        if self.hour_actions + 1 > policy.get("max_actions_per_hour", float("inf")):
            return Code.HOURLY_ACTIONS
        if self.day_calls[tool] + 1 > policy.get("max_calls_per_tool", {}).get(tool, float("inf")):
            return Code.CALLS_PER_TOOL
        cap = policy.get("max_spend_usd_per_day")
        if cap is not None and self.day_spend_micro_usd + cost > int(cap * MICRO):
            return Code.DAILY_SPEND
        return Code.OK

    def cost_micro_usd(self, tool: str, spend_usd: float) -> int:
        """The larger of what the caller declares and the tool's price: an agent can't under-declare."""
        prices = [
            rule["price_usd"] for rule in (self.policy or {}).get("pricing_rules", []) if rule["tool"] == tool
        ]
        return max(micro_usd(price) for price in (spend_usd, *prices))

    def _roll(self, now: datetime) -> None:
        hour = now.replace(minute=0, second=0, microsecond=0)
        if self.hour != hour:
            self.hour, self.hour_actions = hour, 0
        if self.day != now.date():
            self.day, self.day_spend_micro_usd, self.day_calls = now.date(), 0, Counter()
