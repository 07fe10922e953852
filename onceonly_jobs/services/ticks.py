"""Making runs of ticks: the scheduler's, those that somebody triggers, and those of a past range."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.schedules import BackfillRequest
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.domain.schedules import (
    BadSchedule,
    DueTicks,
    Overlap,
    TickState,
    due_ticks,
    jitter,
    tick_key,
    tick_name,
    trigger_key,
    utc,
)
from onceonly_jobs.errors import Refusal
from onceonly_jobs.services import runs
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.services.schedules import find, job_of, run_metadata
from onceonly_jobs.store import jobs, schedules, usage
from onceonly_jobs.store import ticks as store
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.store.schedules import Name, Schedule
from onceonly_jobs.store.statement import Operation, autocommit, read_only
from onceonly_jobs.store.ticks import RecordedTick, Source, Tick

MOST_BACKFILLED = 500
"""Ticks of one backfill."""


@dataclass(slots=True)
class Served:
    """What became of a schedule's due ticks."""

    at: datetime
    """When, by the database's clock."""
    ticks: list[Tick] = field(default_factory=list)
    due: list[Due] = field(default_factory=list)
    """New runs that may be published at once."""
    cancelled: list[str] = field(default_factory=list)
    """Keys of the earlier runs that made room."""
    slot: int = field(default_factory=usage.slot)


@autocommit
def due(batch: int, resting: list[Name]) -> Operation[list[Name]]:
    """Schedules with ticks to serve."""
    return (yield from schedules.due(batch, resting))


@autocommit
def next_due_in_s(resting: list[Name]) -> Operation[float | None]:
    """Seconds until the next tick of all; None when none is in sight."""
    return (yield from schedules.next_due_in_s(resting))


@autocommit
def forget_old(kept_s: int, batch: int) -> Operation[int]:
    """Drop history that is older; how many ticks."""
    return (yield from store.forget_old(kept_s, batch))


def serve(name: Name, settings: Settings) -> Operation[Served | None]:
    """Make the runs of a schedule's due ticks and move it on, all or nothing.

    None when there is nothing to do: it is not due, or another scheduler has it.
    """
    found = yield from schedules.take_due(name)
    if found is None:
        return None
    schedule, plan = found
    assert schedule.next_tick_at is not None, "it is due"  # noqa: S101
    caller = Caller(
        tenant_id=schedule.tenant_id,
        plan=plan,
        key_id=f"schedule:{schedule.name}",
        key_preview="",
        rate_limit=None,
        disabled=False,
    )
    known = yield from jobs.registered()
    what = due_ticks(schedule.timing, schedule.definition.misfires, schedule.next_tick_at, schedule.read_at)
    served = Served(schedule.read_at, _dropped(schedule, what))
    for tick in what.fire:
        yield from _fire(caller, schedule, tick, known, settings, served)
    if served.ticks:
        yield from store.record(schedule.tenant_id, schedule.name, "scheduler", served.ticks)
    moved = yield from schedules.advance(
        schedule, next_tick_at=what.next_at, last_tick_at=what.fire[-1] if what.fire else None
    )
    if not moved:
        raise RuntimeError(f"schedule {schedule.name} moved under its lock: nothing is stored")
    return served


def _dropped(schedule: Schedule, what: DueTicks) -> list[Tick]:
    """The missed ticks, as far as they are shown one by one."""
    ticks = [
        Tick(tick_at=tick, key=tick_key(schedule.name, tick), state=TickState.MISFIRED)
        for tick in what.dropped
    ]
    if what.more_dropped and schedule.next_tick_at is not None:
        ticks[-1] = replace(ticks[-1], detail=f"and all before it since {tick_name(schedule.next_tick_at)}")
    return ticks


def _fire(
    caller: Caller,
    schedule: Schedule,
    tick: datetime,
    known: list[JobSpec],
    settings: Settings,
    served: Served,
) -> Operation[None]:
    """Make the run of one tick, or note why there is none."""
    key, overlap = tick_key(schedule.name, tick), schedule.definition.overlap

    def noted(state: TickState, detail: str | None = None) -> None:
        served.ticks.append(Tick(tick_at=tick, key=key, state=state, detail=detail))

    if overlap is Overlap.SKIP:
        active = yield from store.active_run(schedule.tenant_id, schedule.name, key)
        if active is not None:
            return noted(TickState.SKIPPED, f"{active} was still active")
    due_at = tick + jitter(schedule.tenant_id, schedule.name, tick, schedule.definition.jitter_s)
    delay_s = max(0.0, (due_at - schedule.read_at).total_seconds())
    try:
        job = job_of(schedule.definition, schedule.name, tick, known, settings)
        taking = _taking(caller, schedule, job, key, tick, "scheduler", settings, delay_s)
    except Refusal as refusal:  # the job is gone, or the plan has become a smaller one
        return noted(TickState.REFUSED, str(refusal))
    taking = replace(taking, slot=served.slot)
    taken = yield from runs.taking_operation(caller, taking)(caller, taking)
    if isinstance(taken, Refused):
        return noted(TickState.REFUSED, str(taken.refusal))
    if taken.outcome == "refused":
        return noted(TickState.REFUSED, taken.run.error_message)
    noted(TickState.FIRED, None if taken.outcome == "acquired" else "its key had a run already")
    if taken.outcome != "acquired":
        return None
    if delay_s == 0:
        served.due.append(due_of(taking, taken))
    if overlap is Overlap.CANCEL_PREVIOUS:
        served.cancelled += yield from store.cancel_active(
            schedule.tenant_id, schedule.name, key, f"replaced by {key}", settings.retention_s
        )
        served.due = [run for run in served.due if run.key not in served.cancelled]
    return None


def _taking(
    caller: Caller,
    schedule: Schedule,
    job: JobSpec,
    key: str,
    tick: datetime,
    source: Source,
    settings: Settings,
    delay_s: float = 0,
) -> Taking:
    definition = schedule.definition
    metadata = run_metadata(definition, schedule.name, tick, source)
    taking = runs.job_taking(
        caller,
        job,
        key=key,
        ttl_s=definition.ttl_s,
        metadata=metadata,
        queue=definition.queue,
        delay_s=delay_s,
        publish_grace_s=0 if delay_s else settings.publish_grace_s,
        retention_s=settings.retention_s,
    )
    return replace(taking, schedule=schedule.name)


def due_of(taking: Taking, taken: Taken) -> Due:
    """A new run as its publisher wants it."""
    return Due(
        id=taken.run.id,
        tenant_id=taking.tenant_id,
        key=taking.key,
        agent_id=taking.agent_id,
        job=taking.job or "",
        queue=taking.queue or "",
        due_at=taken.run.read_at,
    )


@dataclass(frozen=True, slots=True)
class Started:
    """A run that somebody asked for out of turn."""

    taken: Taken | Refused
    due: Due | None
    """To be published, if it is a new one."""


def trigger(caller: Caller, name: str, trigger_id: str | None, settings: Settings) -> Operation[Started]:
    """A run of the schedule's job now, once per id, whether or not the schedule is paused or has one running.

    Raises ScheduleNotFound, UnknownTask.
    """
    schedule = yield from find(caller.tenant_id, name)
    now = schedule.read_at.replace(microsecond=0)
    key = trigger_key(name, trigger_id or tick_name(now).replace("-", "").replace(":", ""))
    return (yield from _start(caller, schedule, key, now, "trigger", settings))


def backfill_tick(caller: Caller, name: str, tick: datetime, settings: Settings) -> Operation[Started]:
    """The run of a past tick, if it has none. Raises ScheduleNotFound, UnknownTask."""
    schedule = yield from find(caller.tenant_id, name)
    return (yield from _start(caller, schedule, tick_key(name, tick), tick, "backfill", settings))


def _start(
    caller: Caller, schedule: Schedule, key: str, tick: datetime, source: Source, settings: Settings
) -> Operation[Started]:
    known = yield from jobs.registered()
    job = job_of(schedule.definition, schedule.name, tick, known, settings)
    taking = _taking(caller, schedule, job, key, tick, source, settings)
    taken = yield from runs.taking_operation(caller, taking)(caller, taking)
    if isinstance(taken, Refused) or taken.outcome not in ("acquired", "refused"):
        return Started(taken, None)
    refused = taken.outcome == "refused"
    state = TickState.REFUSED if refused else TickState.FIRED
    detail = taken.run.error_message if refused else None
    row = Tick(tick_at=tick, key=key, state=state, detail=detail)
    yield from store.record(schedule.tenant_id, schedule.name, source, [row])
    return Started(taken, None if refused else due_of(taking, taken))


@read_only
def backfill_ticks(tenant_id: str, name: str, request: BackfillRequest) -> Operation[list[datetime]]:
    """The ticks of a past range. Raises ScheduleNotFound, BadSchedule."""
    schedule = yield from find(tenant_id, name)
    first, last = (utc(at, schedule.definition.tz) for at in (request.from_, request.to))
    if last < first:
        raise BadSchedule("to", "to is before from")
    if last > schedule.read_at:
        raise BadSchedule("to", "a backfill is of the past: to is after now")
    ticks = list(islice(schedule.timing.between(first, last), MOST_BACKFILLED + 1))
    if len(ticks) > MOST_BACKFILLED:
        upto = tick_name(ticks[-1] - timedelta(seconds=1))
        raise BadSchedule("to", f"more than {MOST_BACKFILLED} ticks; go in steps, the first one to {upto}")
    return ticks


@read_only
def latest(tenant_id: str, name: str, limit: int, offset: int) -> Operation[list[RecordedTick]]:
    """What became of the latest ticks. Raises ScheduleNotFound."""
    yield from find(tenant_id, name)
    return (yield from store.latest(tenant_id, name, limit, offset))


@dataclass(frozen=True, slots=True)
class Coming:
    """A tick that is to come, and when its run becomes due."""

    tick: datetime
    due_at: datetime
    key: str


def coming(schedule: Schedule, most: int) -> list[Coming]:
    """A schedule's next ticks; of a paused one, as if it went on now."""
    if schedule.next_tick_at is None:
        return []
    at = schedule.read_at
    if schedule.paused_at is None:
        at = min(at, schedule.next_tick_at - timedelta(seconds=1))
    found: list[Coming] = []
    while len(found) < most:
        tick = schedule.timing.next_after(at)
        if tick is None:
            break
        shift = jitter(schedule.tenant_id, schedule.name, tick, schedule.definition.jitter_s)
        found.append(Coming(tick, tick + shift, tick_key(schedule.name, tick)))
        at = tick
    return found
