"""The words of governance: why a call was refused, how risky a tool is, and the policy templates."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any

MICRO = 1_000_000
MAX_USD = 1e9
"""No single cost or limit is larger: sums of them fit 64 bits."""


class Code(StrEnum):
    """Why a call was allowed or refused, in the order of the checks."""

    OK = "ok"
    AGENT_DISABLED = "agent_disabled"
    """the kill switch"""
    EXPLICITLY_BLOCKED = "tool_explicitly_blocked"
    NOT_IN_ALLOWED_LIST = "tool_not_in_allowed_list"
    NOT_FOUND = "tool_not_found"
    TOOL_DISABLED = "tool_disabled"
    IDEMPOTENCY = "tool_idempotency"
    """the same call was made before, or is being made"""
    TOOL_ERROR = "tool_error"
    """allowed and made, and failed"""
    OUTCOME_UNKNOWN = "outcome_unknown"
    """allowed and perhaps made: held until that is settled"""
    HOURLY_ACTIONS = "max_actions_per_hour_exceeded"
    CALLS_PER_TOOL = "max_calls_per_tool_exceeded"
    DAILY_SPEND = "max_spend_usd_per_day_exceeded"


REASONS: dict[Code, str] = {
    Code.OK: "within_budget",
    Code.AGENT_DISABLED: "agent_disabled",
    Code.EXPLICITLY_BLOCKED: "tool_not_allowed",
    Code.NOT_IN_ALLOWED_LIST: "tool_not_allowed",
    Code.NOT_FOUND: "tool_not_found",
    Code.TOOL_DISABLED: "tool_disabled",
    Code.IDEMPOTENCY: "tool_idempotency",
    Code.TOOL_ERROR: "tool_error",
    Code.OUTCOME_UNKNOWN: "outcome_unknown",
    Code.HOURLY_ACTIONS: "max_actions_per_hour_exceeded",
    Code.CALLS_PER_TOOL: "max_calls_per_tool_exceeded",
    Code.DAILY_SPEND: "daily_spend_exceeded",
}
"""The word on the wire (`policy_reason`) for each code (`policy_code`)."""

HIGH_RISK = ("delete", "drop", "remove", "destroy", "wipe", "refund_all")
MEDIUM_RISK = ("charge", "refund", "pay", "transfer", "invoice", "update")


def risk_level(tool: str) -> str:
    """`high`, `medium` or `low`, by what the tool's name says it does."""
    name = tool.lower()
    if any(word in name for word in HIGH_RISK):
        return "high"
    return "medium" if any(word in name for word in MEDIUM_RISK) else "low"


def micro_usd(usd: float | int) -> int:
    """Dollars as whole micro-dollars, a fraction of one rounded up: a cost is never understated."""
    return int((Decimal(str(usd)) * MICRO).to_integral_value(ROUND_CEILING))


def usd(micro: int) -> float:
    """Micro-dollars as a number to show; exact to the cent and beyond."""
    return micro / MICRO


TEMPLATES: dict[str, dict[str, Any]] = {
    "strict": {"max_actions_per_hour": 10, "max_spend_usd_per_day": 0.5, "allowed_tools": []},
    "moderate": {
        "max_actions_per_hour": 200,
        "max_spend_usd_per_day": 50.0,
        "blocked_tools": ["delete_user", "stripe.charge"],
    },
    "permissive": {"max_actions_per_hour": 1000, "max_spend_usd_per_day": 500.0},
    "read_only": {"max_actions_per_hour": 500, "allowed_tools": ["get_user", "search", "list_items"]},
    "support_bot": {
        "max_actions_per_hour": 150,
        "max_spend_usd_per_day": 50.0,
        "allowed_tools": [
            "send_email",
            "create_ticket",
            "read_knowledge_base",
            "read_customer_data",
            "read_order_history",
        ],
        "blocked_tools": ["delete_customer", "delete_ticket", "process_refund", "update_customer_data"],
        "max_calls_per_tool": {
            "send_email": 500,
            "create_ticket": 100,
            "read_knowledge_base": 1000,
            "read_customer_data": 200,
        },
        "pricing_rules": [
            {"tool": "send_email", "price_usd": 0.001},
            {"tool": "create_ticket", "price_usd": 0.05},
            {"tool": "read_knowledge_base", "price_usd": 0.0},
            {"tool": "read_customer_data", "price_usd": 0.0},
            {"tool": "read_order_history", "price_usd": 0.0},
        ],
    },
}
