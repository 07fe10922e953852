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
    tools: int
    """How many tools may be registered, over all scopes."""

    def quota(self, kind: Kind) -> int:
        return self.make_per_month if kind is Kind.MAKE else self.ai_per_month

    def effective_ttl_s(self, requested_s: int | None) -> int:
        """The lock or lease length in seconds: the plan's default, or the request clamped to [10, maximum]."""
        if requested_s is None:
            return self.default_ttl_s
        return max(MIN_TTL_S, min(requested_s, self.max_ttl_s))


LIMITS: dict[Plan, PlanLimits] = {
    Plan.FREE: PlanLimits(1_000, 3_000, 60, 3_600, hard_stop=True, tools=0),
    Plan.STARTER: PlanLimits(20_000, 100_000, 3_600, 86_400, hard_stop=False, tools=0),
    Plan.PRO: PlanLimits(200_000, 1_000_000, 21_600, 604_800, hard_stop=False, tools=10),
    Plan.AGENCY: PlanLimits(2_000_000, 10_000_000, 86_400, 2_592_000, hard_stop=False, tools=500),
}


class Feature(StrEnum):
    """What a plan may lack. A field of a policy is a feature of its own."""

    POLICIES = "policies"
    ALLOWED_TOOLS = "allowed_tools"
    KILL_SWITCH = "kill_switch"
    AUDIT = "audit"
    """an agent's log and metrics"""
    TOOLS = "tools"
    """the registry of tools"""


_GOVERNED = frozenset({Feature.POLICIES, Feature.AUDIT, Feature.TOOLS})

FEATURES: dict[Plan, frozenset[Feature]] = {
    Plan.FREE: frozenset(),
    Plan.STARTER: frozenset(),
    Plan.PRO: _GOVERNED,
    Plan.AGENCY: frozenset(Feature),
}
