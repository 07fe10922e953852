"""One run in a worker: claim, keep, execute, record, tell. Only the database's guards decide what counts."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from celery.exceptions import WorkerShutdown, WorkerTerminate
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from onceonly_jobs import metrics
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.retries import retry_delay_s
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import claims, outbox
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.database import may_pass, refused_value, unreachable
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.deaths import crashed
from onceonly_jobs.worker.interrupt import Interrupt, Interrupted, Reason
from onceonly_jobs.worker.jobs import Job
from onceonly_jobs.worker.keeper import TIMEOUT, TIMEOUT_MESSAGE, Keeper
from onceonly_jobs.worker.observed import observed
from onceonly_jobs.worker.outcomes import (
    Costed,
    Fail,
    OutcomeUnknown,
    Retry,
    Unusable,
    as_result,
    described,
    printable,
)
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.tool_result import cost_in, stored_form

logger = logging.getLogger(__name__)

T = TypeVar("T")
MAX_PAUSE_S = 2.0


class Fate(Enum):
    """What became of a message's run."""

    NOT_CLAIMED = auto()
    """nothing to do: taken, finished, or not due; a repeated message"""
    UNREACHABLE = auto()
    """the database did not answer; the run is published again, or its claim expires"""
    COMPLETED = auto()
    UNKNOWN = auto()
    """held, since it may have happened: somebody has to settle it"""
    FAILED = auto()
    RETRIED = auto()
    """queued for another attempt"""
    HANDED_BACK = auto()
    """queued for another worker, since this one stops"""
    CANCELLED = auto()
    LOST = auto()
    """the claim had ended before; what the handler did does not count"""


@dataclass(frozen=True, slots=True)
class Outcome:
    fate: Fate
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    result: dict[str, Any]
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    code: str
    message: str
    dead_lettered: bool = True
    result: dict[str, Any] | None = None
    repeatable: bool = False
    never_made: bool = False
    kind: claims.Kind = "error"


@dataclass(frozen=True, slots=True)
class Retried:
    delay_s: float
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class HandedBack:
    message: str


@dataclass(frozen=True, slots=True)
class Released:
    """A cancelled run's handler has stopped."""


@dataclass(frozen=True, slots=True)
class Held:
    """A call that may have happened, and can't be repeated."""

    message: str
    result: dict[str, Any] | None = None
    kind: claims.Kind = "error"


Verdict = Completed | Failed | Retried | HandedBack | Released | Held
"""How an attempt ended, still to be recorded."""

VERDICTS: dict[type[Verdict], Fate] = {
    Completed: Fate.COMPLETED,
    Failed: Fate.FAILED,
    Retried: Fate.RETRIED,
    HandedBack: Fate.HANDED_BACK,
    Released: Fate.CANCELLED,
    Held: Fate.UNKNOWN,
}
"""What becomes of a run whose verdict is accepted."""


def run_job(runtime: Runtime, job: Job, run: int, interrupt: Interrupt | None = None) -> Outcome:
    """Run a job if the run can be claimed, and record how it ended.

    interrupt: of a handler that carries this run out within its own, `lent` for that.
    """
    if interrupt is None and runtime.shared.draining:
        return _passed_on(runtime, run)
    try:
        claim = _claim(runtime, job, run)
    except SQLAlchemyError as error:
        logger.warning("run %s: not claimed, the database is away: %s", run, brief(error))
        metrics.count(metrics.MESSAGES, "unreachable")
        return Outcome(Fate.UNREACHABLE)
    if claim is None:
        metrics.count(metrics.MESSAGES, "stale")
        return Outcome(Fate.NOT_CLAIMED)
    metrics.count(metrics.MESSAGES, "claimed")
    runtime.shared.claimed(claim.claimed_at)
    with observed(claim) as note_fate:
        outcome = _execute(runtime, job, claim, interrupt or Interrupt())
        note_fate(outcome.fate.name.lower())
    return outcome


def _passed_on(runtime: Runtime, run: int) -> Outcome:
    """For another worker, since this one ends: its message is gone, so the relay sends another one, at once."""
    try:
        runtime.database.run(outbox.publish_again, run)
    except SQLAlchemyError as error:
        logger.warning("run %s: left to the relay, the database is away: %s", run, brief(error))
    metrics.count(metrics.MESSAGES, "passed_on")
    return Outcome(Fate.NOT_CLAIMED)


def _execute(runtime: Runtime, job: Job, claim: Claim, interrupt: Interrupt) -> Outcome:
    with Keeper(runtime, claim, interrupt) as keeper:
        context = JobContext(claim, reporting(runtime, claim, keeper), interrupt, keeper.time_left_s)
        try:
            verdict = attempted(runtime, job, claim, context, interrupt)
        except (SystemExit, KeyboardInterrupt) as end:
            end_of_process(runtime, claim, end)
            raise
        outcome = recorded(runtime, claim, verdict)
    runtime.hints.all_finished(news(claim, outcome))
    log_end(claim, outcome)
    return outcome


def news(claim: Claim, outcome: Outcome) -> list[tuple[str, str]]:
    """Whom to wake when an attempt has ended so: tenants and keys."""
    if outcome.fate not in (Fate.COMPLETED, Fate.FAILED, Fate.UNKNOWN):
        return []
    return [(claim.tenant_id, name) for name in dict.fromkeys((claim.key, claim.run_id))]


def log_end(claim: Claim, outcome: Outcome) -> None:
    """The line that each attempt has."""
    fate = outcome.fate.name.lower()
    logger.info("run %s %s: %s, attempt %s %s", claim.id, claim.key, claim.job, claim.attempt, fate)


def _claim(runtime: Runtime, job: Job, run: int) -> Claim | None:
    """The run, claimed. Raises SQLAlchemyError when the database does not answer for a lease's time."""
    lease_s, lease_id = runtime.settings.worker_lease_s, claims.new_lease_id()
    repeated = False

    def claim() -> Claim | None:
        nonlocal repeated
        again, repeated = repeated, True
        return runtime.database.run(
            claims.claim,
            run,
            job.name,
            lease_s,
            job.time_limit_s,
            lease_id=lease_id,
            repeated=again,
            retention_s=runtime.settings.retention_s,
            effect=None if job.effect is None else job.effect.value,
            holder=runtime.holder,
        )

    return answered(claim, give_up_after_s=lease_s)


def attempted(runtime: Runtime, job: Job, claim: Claim, context: JobContext, interrupt: Interrupt) -> Verdict:
    """Call the handler and judge how it ended."""
    try:
        return _completed(claim, interrupt.call(job.handler, context), runtime.settings.max_result_bytes)
    except Interrupted as stop:
        return _stopped(claim, stop.reason)
    except Fail as failure:
        return Failed(
            failure.code,
            failure.message,
            dead_lettered=False,
            result=_showable(runtime, failure.result),
            repeatable=failure.repeatable,
            never_made=failure.never_made,
        )
    except OutcomeUnknown as unknown:
        return Held(unknown.message, _showable(runtime, unknown.result))
    except Unusable as unusable:
        return Failed(unusable.code, unusable.message)
    except Retry as retry:
        return _again(job, claim, retry.message, retry.delay_s)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # CancelledError too: nothing of ours has cancelled it
        logger.warning("run %s %s: %s failed", claim.id, claim.key, job.name, exc_info=error)
        return _again(job, claim, described(error), for_good=not job.retries(error))


def _completed(claim: Claim, returned: Any, limit_bytes: int) -> Completed:
    """Raises Unusable for what can't be stored; but what a tool has done is done, however little can be shown."""
    cost_usd = None
    if isinstance(returned, Costed):
        returned, cost_usd = returned.result, returned.cost_usd
    try:
        return Completed(as_result(returned, limit_bytes), cost_usd)
    except Unusable:
        if not claim.tool_call:
            raise
        form = stored_form(returned, limit_bytes)
        return Completed(form.kept, cost_in(form.whole) if cost_usd is None else cost_usd)


def _showable(runtime: Runtime, result: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a failure has to show, where that can be stored: it must not stand in the way of the failure."""
    try:
        return None if result is None else as_result(result, runtime.settings.max_result_bytes)
    except Unusable as unusable:
        logger.warning("a failed run's result is dropped: %s", unusable.message)
        return None


def _stopped(claim: Claim, reason: Reason) -> Verdict:
    if reason is Reason.OVERDUE:
        return _timed_out(claim)
    if reason is Reason.CANCELLED:
        return Released()
    return _back(claim)


def _timed_out(claim: Claim, result: dict[str, Any] | None = None) -> Verdict:
    if not claim.repeatable:
        return Held(TIMEOUT_MESSAGE, result, "timeout")
    return _given_up(claim, TIMEOUT, TIMEOUT_MESSAGE, "timeout")


def _given_up(claim: Claim, code: str, message: str, kind: claims.Kind = "error") -> Failed:
    """After the last attempt: a job is a dead letter, and a tool call forgotten, so that a repeat of it runs."""
    return Failed(code, message, dead_lettered=not claim.tool_call, repeatable=claim.tool_call, kind=kind)


def _again(
    job: Job, claim: Claim, message: str, delay_s: float | None = None, *, for_good: bool = False
) -> Verdict:
    if not claim.repeatable:
        return Held(message)
    if for_good or not claim.attempts_left:
        return _given_up(claim, "handler_error", message)
    if delay_s is None:
        failures = claim.failures + 1
        delay_s = retry_delay_s(failures, random.random(), job.retry_base_s, job.retry_max_s)  # noqa: S311
    return Retried(delay_s, "handler_error", message)


def _back(claim: Claim) -> Verdict:
    """For another worker to do. Of a lost claim the refusal leaves its trace."""
    message = "its worker stopped before it was done"
    return HandedBack(message) if claim.repeatable else Held(message, kind="handed_back")


def end_of_process(runtime: Runtime, claim: Claim, end: BaseException) -> None:
    """Without waiting for the claim to expire; but not for long, since this process is to end.

    A handler that ends it by itself is one that kills its worker: handed back, it would do so for ever.
    """
    try:
        if told_to_end(end, runtime):
            _ending(runtime, claim, _back(claim))
        else:
            crashed(runtime, claim.id, f"the handler ended its process: {described(end)}")
    except Exception as error:
        logger.warning("run %s: not handed back, its claim will expire: %s", claim.id, brief(error))


def told_to_end(end: BaseException, runtime: Runtime) -> bool:
    """Whether a signal or the worker has raised it, and not the handler."""
    if isinstance(end, SystemExit) and runtime.expendable:
        # What a child of the pool makes of a signal.
        return isinstance(end.code, int) and 256 + end.code in signal.valid_signals()
    return isinstance(end, WorkerShutdown | WorkerTerminate) or (
        isinstance(end, KeyboardInterrupt) and not runtime.expendable  # a child ignores SIGINT
    )


def recorded(runtime: Runtime, claim: Claim, verdict: Verdict) -> Outcome:
    """Store the verdict if the claim is still current, however long the database takes to answer.

    But for a worker that is to end, and whose time is over: then the claim will expire.
    """
    try:
        ending = answered(lambda: _ending(runtime, claim, verdict), unless=lambda: has_to_end(runtime))
    except SQLAlchemyError as error:
        if unreachable(error) or may_pass(error):
            logger.warning("run %s: not recorded, its claim will expire: %s", claim.id, brief(error))
            return Outcome(Fate.UNREACHABLE)
        refused = isinstance(error, DBAPIError) and refused_value(error)
        if not isinstance(verdict, Completed) or not refused:
            raise
        # A value that passed our checks and not Postgres's own. It would not pass next time either.
        return recorded(runtime, claim, Failed("invalid_result", printable(brief(error))))
    return concluded(runtime, claim, verdict, ending)


def concluded(runtime: Runtime, claim: Claim, verdict: Verdict, ending: Ending) -> Outcome:
    """What the database's answer to a verdict means; one that came too late is recorded as that."""
    if ending is Ending.OVERDUE:
        result = verdict.result if isinstance(verdict, Completed) else None
        return recorded(runtime, claim, _timed_out(claim, result))
    if ending is Ending.STORED:
        return _stored(verdict)
    return Outcome(Fate.CANCELLED if ending is Ending.CANCELLED else Fate.LOST)


def _stored(verdict: Verdict) -> Outcome:
    match verdict:
        case Completed():
            return Outcome(Fate.COMPLETED)
        case Held(message=message):
            return Outcome(Fate.UNKNOWN, message)
        case Failed(code=code, message=message):
            return Outcome(Fate.FAILED, f"{code}: {message}" if message else code)
        case Retried(delay_s=delay_s, message=message):
            return Outcome(Fate.RETRIED, f"in {delay_s:.1f} s: {message}")
        case HandedBack(message=message):
            return Outcome(Fate.HANDED_BACK, message)
        case Released():
            return Outcome(Fate.CANCELLED)


def _ending(runtime: Runtime, claim: Claim, verdict: Verdict) -> Ending:
    database, retention_s = runtime.database, runtime.settings.retention_s
    match verdict:
        case Completed(result=result, cost_usd=cost_usd):
            return database.run(claims.complete, claim, result, retention_s, cost_usd=cost_usd)
        case Held(message=message, result=result, kind=kind):
            return database.run(claims.hold_unknown, claim, message, result, kind)
        case Failed():
            return database.run(claims.end_as_failed, claim, _failure(verdict), retention_s)
        case Retried(delay_s=delay_s, code=code, message=message):
            return database.run(claims.retry, claim, delay_s, code, message)
        case HandedBack(message=message):
            return database.run(claims.hand_back, claim, message)
        case Released():
            database.run(claims.release, claim)
            return Ending.STORED


def _failure(verdict: Failed) -> claims.Failure:
    return claims.Failure(
        error_code=verdict.code,
        message=verdict.message or None,
        dead_lettered=verdict.dead_lettered,
        result=verdict.result,
        repeatable=verdict.repeatable,
        never_made=verdict.never_made,
        kind=verdict.kind,
    )


def has_to_end(runtime: Runtime) -> bool:
    """Whether this process was told to end so long ago that it can't wait for the database any more."""
    return runtime.shared.overdue(runtime.settings.time_limit_grace_s)


def answered(
    ask: Callable[[], T], give_up_after_s: float = float("inf"), unless: Callable[[], bool] = lambda: False
) -> T:
    """The database's answer, asked for again for as long as it is away.

    unless: whether to give up. Raises what it failed with last.
    """
    give_up_at, pause_s = time.monotonic() + give_up_after_s, 0.1
    while True:
        try:
            return ask()
        except Exception as error:
            passing = unreachable(error) or may_pass(error)
            if not passing or time.monotonic() + pause_s > give_up_at or unless():
                raise
            logger.warning("the database is away: %s", brief(error))
        time.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311
        pause_s = min(MAX_PAUSE_S, pause_s * 2)


def reporting(
    runtime: Runtime, claim: Claim, keeper: Keeper
) -> Callable[[str, str | None, dict[str, Any]], None]:
    def report(kind: str, message: str | None, data: dict[str, Any]) -> None:
        """To the timeline, at best: a handler must not fail because nobody could watch it."""
        try:
            if kind == "progress":
                kept = runtime.database.run(claims.report_progress, claim, data, message)
            else:
                kept = runtime.database.run(claims.report_log, claim, message or "", data)
        except Exception as error:
            logger.warning("run %s: %s not written: %s", claim.id, kind, brief(error))
        else:
            if kept:
                runtime.hints.moved(claim.tenant_id, claim.run_id)
            else:
                keeper.look_now()

    return report
