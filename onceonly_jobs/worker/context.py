"""What a handler is given: its run, ways to report, and ways to notice that it should stop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from onceonly_jobs.domain.fingerprint import canonical_json, compact_json, storable
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.worker.interrupt import Interrupt, Interrupted, Reason
from onceonly_jobs.worker.outcomes import printable

MAX_NOTE_BYTES = 65_536

Report = Callable[[str, str | None, dict[str, Any]], None]
"""Takes `progress` or `log`, a message and data to the run's timeline."""


class JobContext:
    """One attempt at a run, as its handler sees it. Its methods may be called from any thread."""

    def __init__(
        self, claim: Claim, report: Report, interrupt: Interrupt, time_left_s: Callable[[], float]
    ) -> None:
        self._claim = claim
        self._report = report
        self._interrupt = interrupt
        self._time_left_s = time_left_s

    @property
    def claim(self) -> Claim:
        """The right by which it runs, for what only its current holder may write."""
        return self._claim

    @property
    def interrupt(self) -> Interrupt:
        """What stops this handler."""
        return self._interrupt

    @property
    def key(self) -> str:
        """The idempotency key of the run."""
        return self._claim.key

    @property
    def run_id(self) -> str:
        """The timeline that the run belongs to."""
        return self._claim.run_id

    @property
    def job(self) -> str:
        return self._claim.job

    @property
    def tenant(self) -> str:
        return self._claim.tenant_id

    @property
    def agent_id(self) -> str | None:
        return self._claim.agent_id

    @property
    def attempt(self) -> int:
        """Which start of the run this is, from 1."""
        return self._claim.attempt

    @property
    def effect(self) -> str | None:
        """What a second call may do, of a run that carries a tool call out; None for any other."""
        return self._claim.effect

    @property
    def max_attempts(self) -> int:
        return self._claim.max_attempts

    @property
    def failures(self) -> int:
        """How many starts before this one ended by an exception."""
        return self._claim.failures

    @property
    def crashes(self) -> int:
        """How many starts before this one ended with their worker."""
        return self._claim.crashes

    @property
    def attempts_left(self) -> int:
        """How many more starts there are if this one fails."""
        return self._claim.attempts_left

    @property
    def last_attempt(self) -> bool:
        """If this start fails, the run does."""
        return self._claim.attempts_left == 0

    @property
    def first_seen_at(self) -> datetime:
        """When its key was first taken, by the database's clock."""
        return self._claim.first_seen_at

    @property
    def started_at(self) -> datetime:
        """When this attempt began, by the database's clock, in UTC."""
        return self._claim.claimed_at.astimezone(UTC)

    @property
    def fencing_token(self) -> int:
        """Grows with every start of any run under this key: a store that remembers it can refuse older ones."""
        return self._claim.fencing_token

    @property
    def metadata(self) -> dict[str, Any]:
        """What the request carried."""
        return self._claim.metadata

    @property
    def payload(self) -> dict[str, Any]:
        """`metadata["payload"]`: what `Jobs.enqueue` was given; empty when there is none."""
        payload = self._claim.metadata.get("payload")
        return payload if isinstance(payload, dict) else {}

    @property
    def time_left_s(self) -> float:
        """Seconds until the time limit; then the run fails and the handler is interrupted."""
        return self._time_left_s()

    @property
    def cancelled(self) -> bool:
        """The run was cancelled. A handler that goes on is interrupted one heartbeat later."""
        return self._interrupt.announced is Reason.CANCELLED

    @property
    def lease_lost(self) -> bool:
        """Another worker may hold the run by now, and this one's result will be refused."""
        return self._interrupt.announced is Reason.LOST

    def check(self) -> None:
        """Stop here if the run was cancelled or lost, or is overdue: raises what the worker takes for that."""
        if self._interrupt.announced is not None:
            raise Interrupted(self._interrupt.announced)

    def progress(self, progress: float | dict[str, Any], message: str | None = None) -> None:
        """Show how far the run is, as a fraction from 0 to 1 or as any JSON object."""
        data = progress if isinstance(progress, dict) else {"fraction": float(progress)}
        self._report("progress", _text(message), _data(data))

    def log(self, message: str, **data: Any) -> None:
        """Write a line, and data with it, to the run's timeline."""
        self._report("log", _text(message), _data(data))

    def idempotency_key(self, step: str) -> str:
        """A key for a call onward: the same in every attempt of this run, another for any other run or step.

        It is made from the run's decision, which is new each time a key is taken: when the key is used again
        after its retention, the calls of the new run are new ones too.
        """
        claim = self._claim
        parts = [claim.tenant_id, claim.key, claim.decision_id, step]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def _text(message: str | None) -> str | None:
    return None if message is None else printable(message)


def _data(data: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError when it can't be stored: that is a mistake in the handler."""
    why = storable(data)
    if why is None and len(compact_json(data)) > MAX_NOTE_BYTES:
        why = f"more than {MAX_NOTE_BYTES} bytes as compact JSON"
    if why is not None:
        raise ValueError(f"not for the timeline: {why}")
    return data
