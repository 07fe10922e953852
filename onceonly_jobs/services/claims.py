"""How a worker takes a run, keeps it and ends it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from onceonly_jobs.domain import governance
from onceonly_jobs.domain.fingerprint import result_hash
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.store import claims as store
from onceonly_jobs.store import jobs
from onceonly_jobs.store.claims import NOBODY, Beat
from onceonly_jobs.store.claims import Failure as Failure
from onceonly_jobs.store.claims import Holder as Holder
from onceonly_jobs.store.claims import Kind as Kind
from onceonly_jobs.store.statement import Operation, Statement, autocommit, read_only

RETENTION_S = 604_800


class Ending(Enum):
    """What became of a worker's attempt to end its run."""

    STORED = auto()
    """accepted: this claim's outcome is the run's outcome"""
    OVERDUE = auto()
    """refused: the time limit had passed; the run is still this claim's to fail"""
    CANCELLED = auto()
    """refused: the run was cancelled meanwhile"""
    LOST = auto()
    """refused and recorded: the claim had expired, or another worker holds the run"""


def new_lease_id() -> str:
    """A worker's lease id: 144 random bits, and no name of a machine or process."""
    return f"wl_{secrets.token_urlsafe(18)}"


@autocommit
def claim(
    run: int,
    job: str,
    lease_s: float,
    time_limit_s: int | None,
    *,
    lease_id: str | None = None,
    repeated: bool = False,
    retention_s: int = RETENTION_S,
    effect: str | None = None,
    holder: Holder = NOBODY,
) -> Operation[Claim | None]:
    """Claim a run under a new lease id and the next fencing token; None when there is nothing to do.

    repeated: an earlier call with this lease id got no answer, and may have claimed the run.
    effect: of the function that this worker would call. holder: who it is that runs it.
    """
    lease_id = lease_id or new_lease_id()
    claim = yield from store.claim(run, job, lease_id, lease_s, time_limit_s, retention_s, effect, holder)
    if claim is None and repeated:
        claim = yield from store.claimed(run, lease_id)
    return claim


@autocommit
def heartbeat(claim: Claim, lease_s: float, retention_s: int = RETENTION_S) -> Operation[Beat | Ending]:
    """Keep the claim; or why it can't be kept, CANCELLED or LOST.

    Lost is also the run of an agent that may not do this any more: it has ended, for retention_s seconds.
    """
    beat = yield from store.heartbeat(claim, lease_s, retention_s)
    if beat is not None:
        return beat
    standing = yield from store.standing(claim)
    return Ending.CANCELLED if standing == "cancelled" else Ending.LOST


@read_only
def is_current(tenant_id: str, key: str, fencing_token: int) -> Operation[bool]:
    """Whether the worker with this token still holds the run, which nobody has stopped."""
    return (yield from store.is_current(tenant_id, key, fencing_token))


@autocommit
def complete(
    claim: Claim, result: dict[str, Any], retention_s: int, *, cost_usd: float | None = None
) -> Operation[Ending]:
    """Store the result under the current claim. A repeat after a lost answer finds it stored.

    What the run really cost, by cost_usd or the result's own field of that name, settles its reservation.
    """
    actual = actual_micro_usd(result.get("cost_usd") if cost_usd is None else cost_usd)
    return (yield from complete_as(claim, result, result_hash(result), retention_s, actual))


def complete_as(
    claim: Claim, result: dict[str, Any], hash_: str, retention_s: int, actual: int | None
) -> Operation[Ending]:
    """`complete`, where all is worked out already. actual: micro-dollars, None where only the reservation is known."""
    completion = store.complete(claim, result, hash_, retention_s, actual)
    return (yield from _end(claim, completion, "completed", "complete"))


@autocommit
def fail(
    claim: Claim, error_code: str, message: str | None, retention_s: int, *, dead_lettered: bool = False
) -> Operation[Ending]:
    """End the run as failed for good."""
    failure = Failure(error_code=error_code, message=message, dead_lettered=dead_lettered)
    return (yield from end_as_failed(claim, failure, retention_s))


@autocommit
def end_as_failed(claim: Claim, failure: Failure, retention_s: int) -> Operation[Ending]:
    """End the run as failed, with all that is to be said of it."""
    return (yield from _end(claim, store.fail(claim, failure, retention_s), "failed", "fail"))


@autocommit
def hold_unknown(
    claim: Claim, message: str, result: dict[str, Any] | None, kind: Kind = "error"
) -> Operation[Ending]:
    """Keep a call that may have happened and can't be repeated, until somebody settles it."""
    return (yield from _end(claim, store.hold_unknown(claim, message, result, kind), "unknown", "hold"))


@autocommit
def retry(claim: Claim, delay_s: float, error_code: str, message: str) -> Operation[Ending]:
    """Queue another attempt in delay_s seconds, after a failure."""
    return (yield from _end(claim, store.retry(claim, delay_s, error_code, message), "queued", "retry"))


@autocommit
def hand_back(claim: Claim, message: str) -> Operation[Ending]:
    """Let another worker do it, at once: this one stops. It counts as neither a failure nor a crash."""
    return (yield from _end(claim, store.hand_back(claim, message), "queued", "hand back"))


def actual_micro_usd(cost: Any) -> int | None:
    """What was said to be the cost, in micro-dollars; None where that is no amount of money."""
    if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost <= governance.MAX_USD:
        return governance.micro_usd(cost)
    return None


def _end(claim: Claim, ending: Statement[bool], own_doing: str, wanted: str) -> Operation[Ending]:
    """Let the statement end the claim; or why it could not, which is recorded."""
    if (yield from ending):
        return Ending.STORED
    standing = yield from store.standing(claim)
    if standing == "current":
        # Refused for the time limit, which the requester has moved since.
        if (yield from ending):
            return Ending.STORED
        standing = yield from store.standing(claim)
    if standing == own_doing:
        return Ending.STORED
    if standing == "cancelled":
        yield from store.release(claim)
        return Ending.CANCELLED
    if standing == "overdue":
        return Ending.OVERDUE
    yield from store.record_refusal(claim, f"{wanted} without a current claim")
    return Ending.LOST


@autocommit
def release(claim: Claim) -> Operation[None]:
    """Tell that the worker of a cancelled run has stopped, so that its key is free."""
    yield from store.release(claim)


@autocommit
def report_progress(claim: Claim, data: dict[str, Any], message: str | None) -> Operation[bool]:
    """Show a handler's progress on the timeline; False when the claim is lost."""
    return (yield from store.note(claim, "progress", data, message=message))


@autocommit
def report_log(claim: Claim, message: str, data: dict[str, Any]) -> Operation[bool]:
    """Show a handler's log line on the timeline; False when the claim is lost."""
    return (yield from store.note(claim, "log", data, message=message))


def announce(specs: Iterable[JobSpec]) -> Operation[None]:
    """Make a worker's jobs known to the API."""
    for spec in sorted(specs, key=lambda spec: spec.name):
        yield from jobs.announce(spec)
