"""Pricing plans and their limits, as one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIN_TTL_S = 10


class Kind(StrEnum):
    """What a monthly quota counts."""

    MAKE = "make"
    """check-lock calls"""
    AI = "ai"
    """leases and runs"""


class Plan(StrEnum):
    FREE = "free"
    STARTER = "starter"
    PRO = "pro"
    AGENCY = "agency"


@dataclass(frozen=True, slots=True)
class PlanLimits:
    make_per_month: int
    ai_per_month: int
    default_ttl_s: int
    max_ttl_s: int
    hard_stop: bool
    """Whether a used-up quota refuses (True) or only notifies."""

    def quota(self, kind: Kind) -> int:
        return self.make_per_month if kind is Kind.MAKE else self.ai_per_month

    def effective_ttl_s(self, requested_s: int | None) -> int:
        """The lock or lease length in seconds: the plan's default, or the request clamped to [10, maximum]."""
        if requested_s is None:
            return self.default_ttl_s
        return max(MIN_TTL_S, min(requested_s, self.max_ttl_s))


LIMITS: dict[Plan, PlanLimits] = {
    Plan.FREE: PlanLimits(1_000, 3_000, 60, 3_600, hard_stop=True),
    Plan.STARTER: PlanLimits(20_000, 100_000, 3_600, 86_400, hard_stop=False),
    Plan.PRO: PlanLimits(200_000, 1_000_000, 21_600, 604_800, hard_stop=False),
    Plan.AGENCY: PlanLimits(2_000_000, 10_000_000, 86_400, 2_592_000, hard_stop=False),
}


class Feature(StrEnum):
    """What a plan may lack. A field of a policy is a feature of its own, under its own name."""

    POLICIES = "policies"
    POLICY_TEMPLATES = "policy_templates"
    MAX_ACTIONS_PER_HOUR = "max_actions_per_hour"
    MAX_SPEND_USD_PER_DAY = "max_spend_usd_per_day"
    MAX_CALLS_PER_TOOL = "max_calls_per_tool"
    BLOCKED_TOOLS = "blocked_tools"
    ALLOWED_TOOLS = "allowed_tools"
    PRICING_RULES = "pricing_rules"
    KILL_SWITCH = "kill_switch"
    AUDIT = "audit"
    """an agent's log and metrics"""
    TOOLS = "tools"
    """the registry of tools, and calls of them"""


class PlanTable(StrEnum):
    """Which of the two published tables says what a plan has."""

    SEED = "seed"
    NEWER = "newer"


_ALL = frozenset(Feature)
_NEWER_FREE = frozenset({Feature.POLICIES, Feature.BLOCKED_TOOLS, Feature.ALLOWED_TOOLS, Feature.TOOLS})
_NEWER_LIMITS = {Feature.MAX_ACTIONS_PER_HOUR, Feature.MAX_SPEND_USD_PER_DAY, Feature.MAX_CALLS_PER_TOOL}

FEATURES: dict[PlanTable, dict[Plan, frozenset[Feature]]] = {
    PlanTable.SEED: {
        Plan.FREE: frozenset(),
        Plan.STARTER: frozenset(),
        Plan.PRO: _ALL - {Feature.ALLOWED_TOOLS, Feature.KILL_SWITCH},
        Plan.AGENCY: _ALL,
    },
    PlanTable.NEWER: {
        Plan.FREE: _NEWER_FREE,
        Plan.STARTER: _NEWER_FREE | _NEWER_LIMITS,
        Plan.PRO: _ALL,
        Plan.AGENCY: _ALL,
    },
}

MOST_TOOLS: dict[PlanTable, dict[Plan, int]] = {
    PlanTable.SEED: {Plan.FREE: 0, Plan.STARTER: 0, Plan.PRO: 10, Plan.AGENCY: 500},
    PlanTable.NEWER: {Plan.FREE: 1, Plan.STARTER: 20, Plan.PRO: 100, Plan.AGENCY: 1000},
}
"""How many tools may be registered, over all scopes."""
