"""What a tool does to the world, and what may therefore be done after a call that went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """What happens when a tool is called twice, the most harmless first."""

    READ = "read"
    """nothing: it changes nothing"""
    IDEMPOTENT = "idempotent"
    """nothing more: the tool tells a repeat by its idempotency key"""
    RECONCILABLE = "reconcilable"
    """perhaps a second effect, but it can be asked whether there was a first"""
    IRREVERSIBLE = "irreversible"
    """perhaps a second effect, and nobody but a person can tell"""

    @property
    def repeatable(self) -> bool:
        """Whether a call that may have been carried out can be sent again."""
        return self in (Effect.READ, Effect.IDEMPOTENT)

    def at_least_as_strict_as(self, other: Effect) -> bool:
        """Whether whoever heeds this one does nothing that the other forbids."""
        order = list(Effect)
        return order.index(self) >= order.index(other)


class Reach(StrEnum):
    """How far one attempt came."""

    FORBIDDEN = "forbidden"
    """not sent, and never will be: a tool may not have such an address"""
    NOT_SENT = "not_sent"
    """no connection: name not found, refused, timed out, TLS failed"""
    UNKNOWN = "unknown"
    """sent, perhaps in part, without a whole answer: time-out, connection lost"""
    ANSWERED = "answered"


class Verdict(StrEnum):
    """What a call has come to after its last attempt."""

    EXECUTED = "executed"
    FORGOTTEN = "forgotten"
    """failed, and a repeat is a call like the first"""
    UNKNOWN = "unknown"
    """may have been carried out; held until that is settled"""


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt, seen from here. The status is there if, and only if, it was answered."""

    reach: Reach
    status: int | None = None

    def __post_init__(self) -> None:
        if (self.reach is Reach.ANSWERED) != (self.status is not None):
            raise ValueError("an answer has a status, and nothing else has")

    @property
    def sent(self) -> bool:
        """False only when provably nothing reached the tool."""
        return self.reach in (Reach.UNKNOWN, Reach.ANSWERED)


def succeeded(status: int | None) -> bool:
    """Whether an answer of this status says that the tool did its work."""
    return status is not None and 200 <= status < 300


def should_retry(effect: Effect, attempted: Attempted) -> bool:
    """Whether another attempt may help, and can do no harm.

    Once sent, only a repeatable call is sent again, and only when it was answered with 429 or 5xx, or not at all.
    """
    if attempted.reach is Reach.NOT_SENT:
        return True
    if attempted.reach is Reach.FORBIDDEN or not effect.repeatable:
        return False
    status = attempted.status
    return status is None or status == 429 or status >= 500


def verdict(effect: Effect, last: Attempted) -> Verdict:
    """What the call has come to, if this was its last attempt.

    A 4xx is a tool that refused the call, so it did nothing. A redirect is not followed, and may be the
    answer to a call that was carried out (303).
    """
    if succeeded(last.status):
        return Verdict.EXECUTED
    refused = last.status is not None and 400 <= last.status < 500
    if not last.sent or refused or effect.repeatable:
        return Verdict.FORGOTTEN
    return Verdict.UNKNOWN
