"""What the client's calls return. Frozen, comparable, picklable; `raw` is the answer as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

Period = Literal["hour", "day", "week"]
Json = dict[str, Any]


class _Shown:
    """A repr of what there is to say: without the raw answer, and without optional fields that are None."""

    def __repr__(self) -> str:
        shown = [
            f"{item.name}={value!r}"
            for item in fields(cast(Any, self))
            if item.repr and not ((value := getattr(self, item.name)) is None and item.default is None)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class CheckLockResult(_Shown):
    """Whether this caller is the first with its key."""

    locked: bool
    duplicate: bool
    key: str
    ttl: int
    """Seconds that the lock is held, as granted."""
    first_seen_at: str | None
    """When the first caller came, for a duplicate."""
    request_id: str | None = field(repr=False)
    status_code: int = field(repr=False)
    raw: Json = field(repr=False)

    def should_proceed(self) -> bool:
        return self.locked and not self.duplicate

    def is_duplicate(self) -> bool:
        return self.duplicate

    @property
    def failed_open(self) -> bool:
        """The server did not answer, and the caller goes on unguarded."""
        return bool(self.raw.get("fail_open"))


def _of(cls: type[Any], answer: Mapping[str, Any]) -> Any:
    """The fields that a class has, taken from an answer. What is missing has the class's default."""
    known = {item.name: answer.get(item.name) for item in fields(cls)}
    known["ok"] = bool(known["ok"])
    known["status"], known["key"] = str(known["status"] or ""), str(known["key"] or "")
    if "version" in known:
        known["version"] = int(known["version"] or 0)
    if "result" in known:
        known["result"] = _object(known["result"])
    return cls(**known)


def _object(value: Any) -> Json | None:
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, repr=False)
class AiRun(_Shown):
    """What a call that asks for a run sees of its key."""

    ok: bool
    status: str
    key: str
    lease_id: str | None = None
    version: int = 0
    ttl: int | None = None
    ttl_left: int | None = None
    first_seen_at: str | None = None
    charged: int | None = None
    usage: int | None = None
    limit: int | None = None
    retry_after_sec: int | None = None
    done_at: str | None = None
    error_code: str | None = None
    result_hash: str | None = None
    result: Json | None = None

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> AiRun:
        return cast(AiRun, _of(AiRun, d))


@dataclass(frozen=True, repr=False)
class AiStatus(_Shown):
    """How far a key is."""

    ok: bool
    status: str
    key: str
    lease_id: str | None = None
    version: int = 0
    ttl_left: int | None = None
    first_seen_at: str | None = None
    done_at: str | None = None
    result_hash: str | None = None
    error_code: str | None = None
    retry_after_sec: int | None = None

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> AiStatus:
        return cast(AiStatus, _of(AiStatus, d))


@dataclass(frozen=True, repr=False)
class AiResult(_Shown):
    """What came of a key."""

    ok: bool
    status: str
    key: str
    result: Json | None = None
    result_hash: str | None = None
    error_code: str | None = None
    done_at: str | None = None

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> AiResult:
        return cast(AiResult, _of(AiResult, d))


@dataclass(frozen=True, repr=False)
class AiToolResult(_Shown):
    """The decision on a governed tool call, and what the tool answered."""

    ok: bool
    allowed: bool
    decision: str
    policy_reason: str | None = None
    risk_level: str | None = None
    result: Json | None = None

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> AiToolResult:
        return AiToolResult(
            ok=bool(d.get("ok")),
            allowed=bool(d.get("allowed")),
            decision=str(d.get("decision") or ""),
            policy_reason=d.get("policy_reason"),
            risk_level=d.get("risk_level"),
            result=_object(d.get("result")),
        )


@dataclass(frozen=True, repr=False)
class Policy(_Shown):
    """An agent's limits and permissions. `policy` holds those that are set."""

    agent_id: str
    policy: Json = field(default_factory=dict)
    max_actions_per_hour: int | None = None
    max_spend_usd_per_day: float | None = None
    allowed_tools: list[str] | None = None
    blocked_tools: list[str] | None = None
    max_calls_per_tool: dict[str, int] | None = None
    pricing_rules: list[Json] | None = None
    raw: Json | None = field(default=None, repr=False)

    @staticmethod
    def of(answer: Mapping[str, Any], *, agent_id: str = "", sent: Json | None = None) -> Policy:
        """From an answer; what it lacks is taken from what was sent."""
        inside = answer.get("policy")
        policy = inside if isinstance(inside, dict) else dict(sent or answer)
        limits = {item.name: policy.get(item.name) for item in fields(Policy)[2:-1]}
        name = str(answer.get("agent_id") or agent_id)
        return Policy(agent_id=name, policy=policy, **limits, raw=dict(answer))


@dataclass(frozen=True, repr=False)
class AgentStatus(_Shown):
    """The position of an agent's kill switch."""

    agent_id: str
    is_enabled: bool
    disabled_reason: str | None = None
    disabled_at: str | None = None
    raw: Json | None = field(default=None, repr=False)

    @property
    def enabled(self) -> bool:
        return self.is_enabled

    @staticmethod
    def of(answer: Mapping[str, Any], agent_id: str) -> AgentStatus:
        return AgentStatus(
            agent_id=str(answer.get("agent_id") or agent_id),
            is_enabled=bool(answer.get("is_enabled", answer.get("enabled"))),
            disabled_reason=answer.get("disabled_reason"),
            disabled_at=answer.get("disabled_at"),
            raw=dict(answer),
        )


@dataclass(frozen=True, repr=False)
class AgentLogItem(_Shown):
    """One decision of the audit trail. `ts` is in Unix seconds; `spend_usd` is what was booked."""

    ts: Any
    agent_id: str
    tool: str | None = None
    allowed: bool = True
    decision: str | None = None
    policy_reason: str | None = None
    reason: str = ""
    args_hash: str | None = None
    risk_level: str | None = None
    spend_usd: float = 0.0
    raw: Json | None = field(default=None, repr=False)

    @staticmethod
    def of(row: Mapping[str, Any], agent_id: str) -> AgentLogItem:
        allowed = bool(row.get("allowed", True))
        why = row.get("policy_reason") or row.get("reason")
        return AgentLogItem(
            ts=row.get("ts"),
            agent_id=str(row.get("agent_id") or agent_id),
            tool=row.get("tool"),
            allowed=allowed,
            decision=str(row.get("decision") or ("allowed" if allowed else "blocked")),
            policy_reason=why,
            reason=str(row.get("reason") or why or ""),
            args_hash=row.get("args_hash"),
            risk_level=row.get("risk_level"),
            spend_usd=float(row.get("spend_usd") or 0),
            raw=dict(row),
        )


@dataclass(frozen=True, repr=False)
class AgentMetrics(_Shown):
    """What an agent did in the current hour or day, or in the last seven days."""

    agent_id: str
    period: Period
    total_actions: int
    blocked_actions: int
    total_spend_usd: float
    top_tools: list[Json]
    raw: Json | None = field(default=None, repr=False)

    @staticmethod
    def of(answer: Mapping[str, Any], agent_id: str, period: Period) -> AgentMetrics:
        return AgentMetrics(
            agent_id=str(answer.get("agent_id") or agent_id),
            period=cast(Period, str(answer.get("period") or period)),
            total_actions=int(answer.get("total_actions") or 0),
            blocked_actions=int(answer.get("blocked_actions") or 0),
            total_spend_usd=float(answer.get("total_spend_usd") or 0),
            top_tools=list(answer.get("top_tools") or []),
            raw=dict(answer),
        )
