"""When a schedule ticks, and what is done about ticks that were missed. Time arrives as an argument."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from onceonly_jobs.domain.cron import Cron

MOST_AT_ONCE = 50
"""Ticks that fire in one transaction; what is left fires in the next."""
MOST_SHOWN = 100
"""Missed ticks that leave a row each."""
JUST_BEFORE = timedelta(microseconds=1)


class Misfire(StrEnum):
    """What happens to ticks whose time passed while no scheduler could serve them."""

    SKIP = "skip"
    """nothing: the next tick is the next run"""
    ONCE = "once"
    """the latest of them fires, for all"""
    CATCH_UP = "catch_up"
    """the latest ones fire, up to a number, oldest first"""


class Overlap(StrEnum):
    """What happens to a tick while an earlier run of its schedule is queued or running."""

    ALLOW = "allow"
    """it fires all the same"""
    SKIP = "skip"
    """it does not fire"""
    CANCEL_PREVIOUS = "cancel_previous"
    """the earlier run is cancelled, and it fires"""


class Origin(StrEnum):
    """Who made a schedule."""

    CODE = "code"
    """`@job(..., cron=...)`: kept up to date by the workers that declare it"""
    API = "api"
    """the HTTP API or the command line"""


class TickState(StrEnum):
    """What became of a tick."""

    FIRED = "fired"
    """there is a run under its key"""
    SKIPPED = "skipped"
    """an earlier run was still active"""
    MISFIRED = "misfired"
    """missed, and dropped by the misfire policy"""
    REFUSED = "refused"
    """the agent's policy, the plan's quota or a missing job refused it"""


class BadSchedule(ValueError):
    """A schedule that can't tick. `field` is the request field that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name. Raises BadSchedule."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # for a directory, a bad name, an unknown one
        raise BadSchedule("tz", f"unknown time zone {name!r}; use an IANA name like Europe/Kyiv") from None


def utc(at: datetime, tz: str) -> datetime:
    """A time in UTC; without an offset it is what the clock shows in tz. Raises BadSchedule."""
    return (at if at.tzinfo is not None else at.replace(tzinfo=zone(tz))).astimezone(UTC)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The ticks of a schedule: by cron expression, every so many seconds, or once. All times are UTC."""

    cron: str | None = None
    every_s: int | None = None
    at: datetime | None = None
    tz: str = "UTC"
    anchor_at: datetime
    """Ticks of an interval are whole multiples away from here."""
    start_at: datetime | None = None
    end_at: datetime | None = None

    def check(self) -> None:
        """Raises BadSchedule for what can't tick."""
        zone(self.tz)
        if sum(how is not None for how in (self.cron, self.every_s, self.at)) != 1:
            raise BadSchedule("cron", "give exactly one of cron, every_s and at")
        if self.cron is not None:
            try:
                _ = self._cron
            except ValueError as error:
                raise BadSchedule("cron", str(error)) from None
        if self.start_at is not None and self.end_at is not None and self.end_at < self.start_at:
            raise BadSchedule("end_at", "end_at is before start_at")

    @cached_property
    def _cron(self) -> Cron:
        return Cron(self.cron or "", zone(self.tz))

    def next_after(self, instant: datetime) -> datetime | None:
        """The first tick after an instant; None when there is none."""
        if self.start_at is not None:
            instant = max(instant, self.start_at - JUST_BEFORE)
        tick = self._next(instant)
        return tick if tick is None or self.end_at is None or tick <= self.end_at else None

    def previous(self, instant: datetime) -> datetime | None:
        """The last tick up to and with an instant; None when there is none."""
        if self.end_at is not None:
            instant = min(instant, self.end_at)
        tick = self._previous(instant)
        return tick if tick is None or self.start_at is None or tick >= self.start_at else None

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """Ticks in order, both ends included."""
        tick = self.next_after(first - JUST_BEFORE)
        while tick is not None and tick <= last:
            yield tick
            tick = self.next_after(tick)

    def back(self, last: datetime, first: datetime) -> Iterator[datetime]:
        """Ticks in reverse order, both ends included."""
        tick = self.previous(last)
        while tick is not None and tick >= first:
            yield tick
            tick = self.previous(tick - JUST_BEFORE)

    def _next(self, instant: datetime) -> datetime | None:
        if self.every_s is not None:
            step = timedelta(seconds=self.every_s)
            return self.anchor_at + ((instant - self.anchor_at) // step + 1) * step
        if self.at is not None:
            return self.at if self.at > instant else None
        return self._cron.next_after(instant)

    def _previous(self, instant: datetime) -> datetime | None:
        if self.every_s is not None:
            step = timedelta(seconds=self.every_s)
            return self.anchor_at + (instant - self.anchor_at) // step * step
        if self.at is not None:
            return self.at if self.at <= instant else None
        return self._cron.previous(instant)


@dataclass(frozen=True, slots=True, kw_only=True)
class MisfirePolicy:
    policy: Misfire
    grace_s: int
    """A tick that is served at most so late was not missed."""
    limit: int
    """How many missed ticks `catch_up` fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a schedule is asked to do. Times are aware and whole seconds."""

    task: str | None = None
    cron: str | None = None
    every_s: int | None = None
    at: datetime | None = None
    tz: str = "UTC"
    start_at: datetime | None = None
    end_at: datetime | None = None
    payload: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    agent_id: str | None = None
    queue: str | None = None
    ttl_s: int | None = None
    misfire: Misfire = Misfire.ONCE
    misfire_grace_s: int = 5
    catch_up_limit: int = 100
    jitter_s: int = 0
    overlap: Overlap = Overlap.ALLOW

    def timing(self, anchor_at: datetime) -> Timing:
        return Timing(
            anchor_at=anchor_at, **{name: getattr(self, name) for name in (*TICKED_BY, *BOUNDED_BY)}
        )

    def ticks_like(self, other: Definition) -> bool:
        """Whether both have the same ticks."""
        return all(getattr(self, name) == getattr(other, name) for name in (*TICKED_BY, *BOUNDED_BY))

    @property
    def misfires(self) -> MisfirePolicy:
        return MisfirePolicy(policy=self.misfire, grace_s=self.misfire_grace_s, limit=self.catch_up_limit)


TICKED_BY = ("cron", "every_s", "at")
"""Exactly one of these is set."""
BOUNDED_BY = ("tz", "start_at", "end_at")


@dataclass(frozen=True, slots=True)
class DueTicks:
    """What to do with the ticks that have come due."""

    fire: list[datetime]
    """Oldest first."""
    dropped: list[datetime]
    """Missed for good, the latest first; at most MOST_SHOWN."""
    more_dropped: bool
    next_at: datetime | None


def due_ticks(timing: Timing, misfire: MisfirePolicy, expected: datetime, now: datetime) -> DueTicks:
    """What is to be done at `now` about the ticks since `expected`, the first that was not served yet."""
    since = max(expected, now - timedelta(seconds=misfire.grace_s))
    on_time = list(islice(timing.between(since, now), MOST_AT_ONCE + 1))
    late = timing.back(since - JUST_BEFORE, expected)
    fire = list(islice(late, _allowance(misfire, bool(on_time))))[::-1] + on_time
    dropped = list(islice(late, MOST_SHOWN))
    more = next(late, None) is not None
    if len(fire) > MOST_AT_ONCE:
        return DueTicks(fire[:MOST_AT_ONCE], dropped, more, fire[MOST_AT_ONCE])
    return DueTicks(fire, dropped, more, timing.next_after(now))


def _allowance(misfire: MisfirePolicy, served: bool) -> int:
    """How many missed ticks fire."""
    if misfire.policy is Misfire.CATCH_UP:
        return misfire.limit
    return 1 if misfire.policy is Misfire.ONCE and not served else 0


def tick_name(tick: datetime) -> str:
    """A tick as it stands in keys: `2026-03-29T01:00:00Z`."""
    return tick.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tick_key(schedule: str, tick: datetime) -> str:
    """The idempotency key of a tick's run."""
    return f"cron:{schedule}:{tick_name(tick)}"


def trigger_key(schedule: str, trigger_id: str) -> str:
    """The idempotency key of a run out of turn."""
    return f"trigger:{schedule}:{trigger_id}"


def jitter(tenant_id: str, schedule: str, tick: datetime, most_s: int) -> timedelta:
    """How much later than its tick a run becomes due: below most_s, the same whoever asks."""
    seed = f"{tenant_id}\n{tick_key(schedule, tick)}".encode()
    part = int.from_bytes(hashlib.sha256(seed).digest()[:8]) / 2**64
    return timedelta(seconds=part * most_s)
