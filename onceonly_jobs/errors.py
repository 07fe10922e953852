"""Every way an operation can be refused: one class, one wire code, one HTTP status.

OnceOnlyError
├── ConfigError                      a setting or the machine is wrong; shown in one line, exit 2
├── EnqueueError                     Jobs.enqueue was refused before anything was stored
├── SecretUnreadable                 a stored secret can't be decrypted here
└── Refusal                          answered to the caller as {"detail": ...}
    ├── MissingToken       401       no Bearer token
    ├── InvalidApiKey      401       unknown key
    ├── ApiKeyDisabled     403       known, but disabled or revoked
    ├── PlanLimitReached   402       the month's quota is used up
    ├── UnknownTask        400       no worker has registered a job of that name
    ├── UnknownTools       400       a policy names tools that are not registered
    ├── Unsupported        400       understood, but not offered by this server
    ├── NotFound           404
    ├── TooManyTools       403       the plan has no room for another tool
    ├── ToolNotFound       404       no such tool for an agent
    ├── ToolNotRegistered  404       no such tool in a scope
    ├── ScheduleNotFound   404       no such schedule
    ├── ScheduleExists     409       another schedule has this name
    ├── LeaseConflict      409       lost, expired or finished lease
    ├── SettlementConflict 409       the call is not unknown, or was settled the other way
    ├── DeadLetterConflict 409       not a dead letter, or a later failure of its run
    ├── FingerprintMismatch 409      the key was used for another request
    ├── DuplicateBlocked   409       check-lock duplicates, where configured so
    ├── PayloadTooLarge    413
    ├── RateLimited        429
    └── Unavailable        503       a server behind this one does not answer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

Detail = str | dict[str, Any]


class OnceOnlyError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(OnceOnlyError):
    """A setting or this machine's state makes starting impossible. The message is one readable line."""


class SchemaBusy(OnceOnlyError):
    """A migration waited in vain for a lock. It may be repeated, and goes on where it stopped."""


class EnqueueError(OnceOnlyError):
    """`Jobs.enqueue` was asked for something that can't be stored. Nothing was."""


class SecretUnreadable(OnceOnlyError):
    """A stored secret can't be decrypted. Says why, and nothing of the secret."""


class Refusal(OnceOnlyError):
    """An operation was refused. `detail` is what the wire carries under the same name."""

    status: ClassVar[int]

    def __init__(self, detail: Detail, headers: Mapping[str, str] | None = None) -> None:
        self.detail = detail
        self.headers = dict(headers or {})
        super().__init__(detail if isinstance(detail, str) else detail.get("message") or detail.get("error"))


class MissingToken(Refusal):
    status = 401

    def __init__(self) -> None:
        super().__init__("Missing Authorization Bearer token", {"WWW-Authenticate": "Bearer"})


class InvalidApiKey(Refusal):
    status = 401

    def __init__(self) -> None:
        super().__init__("Invalid API key", {"WWW-Authenticate": "Bearer"})


class ApiKeyDisabled(Refusal):
    status = 403

    def __init__(self) -> None:
        super().__init__("API key disabled")


class PlanLimitReached(Refusal):
    """The monthly quota of a plan that stops hard is used up."""

    status = 402

    def __init__(self, plan: str, kind: str, limit: int, usage: int) -> None:
        super().__init__(
            {
                "error": "payment_required",
                "highlights": "Plan limit reached",
                "message": f"{plan} plan limit reached: {usage} of {limit} {kind} this month",
                "plan": plan,
                "kind": kind,
                "limit": limit,
                "usage": usage,
                "upgrade_url": "",
            }
        )


class UnknownTask(Refusal):
    status = 400

    def __init__(self, task: str, known: list[str]) -> None:
        super().__init__(
            {
                "error": "unknown_task",
                "message": f"no job named {task!r} is registered; known: {', '.join(known) or 'none'}",
                "task": task,
            }
        )


class UnknownTools(Refusal):
    """A policy names tools that are not registered, on a server that does not accept that."""

    status = 400

    def __init__(self, tools: list[str]) -> None:
        super().__init__({"error": "unknown_tools", "tools": tools})


class Unsupported(Refusal):
    status = 400

    def __init__(self, feature: str, message: str) -> None:
        super().__init__({"error": "unsupported", "feature": feature, "message": message})


class NotFound(Refusal):
    status = 404

    def __init__(self, key: str) -> None:
        super().__init__({"error": "not_found", "message": "no run or lease under this key", "key": key})


class BudgetExceeded(Refusal):
    """A limit of the agent's policy refuses the call. The detail says which, how much is used, and until when."""

    status = 402

    def __init__(self, detail: dict[str, Any]) -> None:
        super().__init__(detail)


class CallInProgress(Refusal):
    """The tool is still at work. The call goes on; repeating it attaches to it."""

    status = 409

    def __init__(self, key: str) -> None:
        super().__init__(
            {
                "error": "in_progress",
                "message": "the tool is still at work; ask /ai/result for this key, or repeat the call",
                "key": key,
                "retry_after_sec": 1,
            }
        )


class FeatureNotAvailable(Refusal):
    """The tenant's plan does not have this feature, or this field of a policy."""

    status = 403

    def __init__(self, feature: str, plan: str) -> None:
        super().__init__(
            {
                "error": "feature_not_available",
                "message": "upgrade required",
                "feature": feature,
                "plan": plan,
            }
        )


class PolicyNotFound(Refusal):
    status = 404

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            {"error": "policy_not_found", "message": "this agent has no policy", "agent_id": agent_id}
        )


class AgentNotFound(Refusal):
    status = 404

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            {
                "error": "agent_not_found",
                "message": "this agent has neither a policy nor any activity",
                "agent_id": agent_id,
            }
        )


class ToolNotFound(Refusal):
    status = 404

    def __init__(self, tool: str, agent_id: str) -> None:
        super().__init__(
            {
                "error": "tool_not_found",
                "message": f"no tool named {tool!r} is registered for this agent",
                "tool": tool,
                "agent_id": agent_id,
            }
        )


class ToolNotRegistered(Refusal):
    status = 404

    def __init__(self, tool: str, scope_id: str) -> None:
        super().__init__(
            {
                "error": "tool_not_found",
                "message": f"no tool named {tool!r} is registered in this scope",
                "tool": tool,
                "scope_id": scope_id,
            }
        )


class ScheduleNotFound(Refusal):
    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(
            {"error": "schedule_not_found", "message": f"no schedule is named {name!r}", "name": name}
        )


class ScheduleExists(Refusal):
    """Creating is no way of changing. The same definition again is answered like the first time."""

    status = 409

    def __init__(self, name: str) -> None:
        super().__init__(
            {
                "error": "schedule_exists",
                "message": f"another schedule is named {name!r}; change it with PATCH",
                "name": name,
            }
        )


class WebhookNotFound(Refusal):
    status = 404

    def __init__(self) -> None:
        super().__init__({"error": "webhook_not_found", "message": "no webhook is set for notifications"})


class TooManyTools(Refusal):
    """The tenant's plan has no room for another tool."""

    status = 403

    def __init__(self, plan: str, most: int) -> None:
        super().__init__({"error": "plan_limit", "message": f"{plan.upper()} plan limit: max {most} tools"})


ConflictReason = Literal["not_owner", "expired", "finished"]

_CONFLICT_MESSAGES: dict[ConflictReason, str] = {
    "not_owner": "lease is held by another caller",
    "expired": "lease has expired",
    "finished": "the run is already finished",
}


class LeaseConflict(Refusal):
    """The caller's lease no longer allows this change. Nothing about the rightful holder is disclosed."""

    status = 409

    def __init__(self, reason: ConflictReason, key: str, status: str, version: int) -> None:
        super().__init__(
            {
                "error": "lease_conflict",
                "reason": reason,
                "message": _CONFLICT_MESSAGES[reason],
                "key": key,
                "status": status,
                "version": version,
            }
        )


SettlementReason = Literal["settled_otherwise", "not_unknown", "other_call"]

_SETTLEMENT_MESSAGES: dict[SettlementReason, str] = {
    "settled_otherwise": "this call has already been settled the other way; that stands",
    "not_unknown": "the outcome of this call is not unknown; there is nothing to settle",
    "other_call": "the key stands for another call now than the one of this decision_id",
}


class SettlementConflict(Refusal):
    """The call can't be settled like this. Nothing was changed; the detail says how it stands."""

    status = 409

    def __init__(self, reason: SettlementReason, key: str, **facts: Any) -> None:
        super().__init__(
            {
                "error": "settlement_conflict",
                "reason": reason,
                "message": _SETTLEMENT_MESSAGES[reason],
                "key": key,
                **facts,
            }
        )


DeadLetterReason = Literal["not_a_dead_letter", "other_failure"]

_DEAD_LETTER_MESSAGES: dict[DeadLetterReason, str] = {
    "not_a_dead_letter": "the run under this key is not a dead letter",
    "other_failure": "the run was replayed and has failed again since the failure of this decision_id",
}


class DeadLetterConflict(Refusal):
    """A run can't be replayed or discarded. Nothing was changed; the detail says how it stands."""

    status = 409

    def __init__(self, reason: DeadLetterReason, key: str, status: str) -> None:
        super().__init__(
            {
                "error": "dead_letter_conflict",
                "reason": reason,
                "message": _DEAD_LETTER_MESSAGES[reason],
                "key": key,
                "status": status,
            }
        )


class FingerprintMismatch(Refusal):
    """The key is in use for a request with another fingerprint: never answered with somebody else's result."""

    status = 409

    def __init__(self, key: str) -> None:
        super().__init__(
            {
                "error": "fingerprint_mismatch",
                "message": "this key was used for a different request",
                "key": key,
            }
        )


class DuplicateBlocked(Refusal):
    status = 409

    def __init__(self, first_seen_at: str) -> None:
        super().__init__(
            {"error": "Duplicate blocked", "first_seen_at": first_seen_at},
            {"X-OnceOnly-Status": "duplicate"},
        )


class PayloadTooLarge(Refusal):
    status = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            {
                "error": "payload_too_large",
                "message": f"request body is larger than {limit_bytes} bytes",
                "limit_bytes": limit_bytes,
            }
        )


class RateLimited(Refusal):
    status = 429

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            {"error": "rate_limited", "message": f"too many requests; retry in {retry_after_s} s"},
            {"Retry-After": str(retry_after_s)},
        )


class TooManyStreams(Refusal):
    """This process follows as many streams as it may."""

    status = 503

    def __init__(self, limit: int) -> None:
        super().__init__(
            {"error": "too_many_streams", "message": f"{limit} streams are open here already; try again"},
            {"Retry-After": "5"},
        )


class Unavailable(Refusal):
    status = 503

    def __init__(self, what: str, retry_after_s: int = 1) -> None:
        super().__init__(
            {"error": "unavailable", "message": f"{what} does not answer; the request can be repeated"},
            {"Retry-After": str(retry_after_s)},
        )
