"""A run or lease as stored, and the questions its readers ask of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.states import Owner, RunState

FAST_POLL_WINDOW = timedelta(seconds=10)
FAST_POLL_S = 1
SLOW_POLL_S = 5

MAX_CRASHES = 3
"""So many dead workers, and a run is held to be what kills them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    id: int
    key: str
    run_id: str
    owner: Owner
    state: RunState
    version: int
    fencing_token: int
    lease_id: str
    """The caller's lease; for a server-run job, the requester's handle."""
    lease_ttl_s: int
    lease_until_at: datetime | None
    deadline_at: datetime | None
    first_seen_at: datetime
    done_at: datetime | None
    result: dict[str, Any] | None
    result_hash: str | None
    error_code: str | None
    error_message: str | None
    read_at: datetime
    """The database's clock when this was read."""

    @property
    def finished(self) -> bool:
        return self.done_at is not None

    def ttl_left_s(self) -> int | None:
        """Whole seconds until the lease, or a running job's time limit, ends; None once finished."""
        if self.finished:
            return None
        until = self.lease_until_at if self.owner is Owner.CALLER else self.deadline_at
        if until is None:
            return self.lease_ttl_s
        return max(0, math.ceil((until - self.read_at).total_seconds()))

    def retry_after_s(self) -> int | None:
        """When a polling reader should come again, in seconds; None once finished."""
        if self.finished:
            return None
        fresh = self.read_at - self.first_seen_at < FAST_POLL_WINDOW
        return FAST_POLL_S if fresh or self.ttl_left_s() == 0 else SLOW_POLL_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker's permission to run: valid while its lease lasts, refused once a later token is granted."""

    id: int
    tenant_id: str
    key: str
    run_id: str
    job: str
    agent_id: str | None
    lease_id: str
    fencing_token: int
    attempt: int
    max_attempts: int
    metadata: dict[str, Any]
    deadline_at: datetime
    claimed_at: datetime
    first_seen_at: datetime
    decision_id: int | None
    """The decision that let the run in: one per taking of the key, the same in every attempt."""

    effect: str | None = None
    """A tool call's effect class; None for a job, which is to be safe to repeat."""
    due_at: datetime | None = None
    """Since when this attempt could have begun."""
    failures: int = 0
    """How many starts before this one ended by an exception or the time limit."""
    crashes: int = 0
    """How many starts before this one ended with their worker."""
    max_crashes: int = MAX_CRASHES
    traceparent: str | None = None
    """The trace of the call that asked for the run."""

    @property
    def repeatable(self) -> bool:
        """Whether a start that may have done something can be followed by another one."""
        return self.effect is None or Effect(self.effect).repeatable

    @property
    def tool_call(self) -> bool:
        """Whether this is a call that governance has allowed, and not a job."""
        return self.effect is not None

    @property
    def attempts_left(self) -> int:
        """How many more starts there are if this one fails."""
        return max(0, self.max_attempts - self.failures - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A registered kind of work, as the API and the relay know it."""

    name: str
    queue: str
    match: str | None = None
    """Key pattern in the style of fnmatch, like `report:daily:*`."""
    max_attempts: int = 3
    max_crashes: int = MAX_CRASHES
    time_limit_s: int | None = None
    description: str = ""
    effect: str | None = None
    """The effect class of a Python function that agents call as a tool; None for any other job."""
