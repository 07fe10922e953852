"""Schedules: making, changing and pausing them, and keeping those that are declared in code up to date."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.runs import RunRequest
from onceonly_jobs.contracts.schedules import ScheduleFields, SchedulePatch, ScheduleRequest
from onceonly_jobs.domain.actions import has_actions
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.domain.schedules import (
    TICKED_BY,
    BadSchedule,
    Definition,
    Misfire,
    Origin,
    Overlap,
    tick_key,
    tick_name,
    utc,
)
from onceonly_jobs.errors import ScheduleExists, ScheduleNotFound
from onceonly_jobs.services import account
from onceonly_jobs.services.runs import actions_job, by_name, pick_job
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import jobs
from onceonly_jobs.store import schedules as store
from onceonly_jobs.store.schedules import Schedule
from onceonly_jobs.store.statement import Operation, autocommit, read_only

LONGEST_TTL_S = 2**31 - 1
"""What is kept of a longer one; the plan has the last word at each tick."""
BY_CODE = "code"
"""Who changed a schedule, where a worker's declaration did."""


def definition_of(fields: ScheduleFields, base: Definition | None = None) -> Definition:
    """The given fields over those of `base`, else over the defaults; a null is the default. Raises BadSchedule."""
    given = fields.given()
    if "ttl" in given:
        ttl_s = given.pop("ttl")
        given["ttl_s"] = None if ttl_s is None else min(ttl_s, LONGEST_TTL_S)
    if base is not None and any(given.get(name) is not None for name in TICKED_BY):
        given = dict.fromkeys(TICKED_BY) | given
    given = {name: getattr(Definition(), name) if value is None else value for name, value in given.items()}
    found = replace(base or Definition(), **given)
    found = replace(found, misfire=Misfire(found.misfire), overlap=Overlap(found.overlap))
    times: dict[str, Any] = {name: getattr(found, name) for name in ("at", "start_at", "end_at")}
    times = {name: utc(at, found.tz) for name, at in times.items() if at is not None}
    found = replace(found, **times)
    found.timing(datetime.fromtimestamp(0, UTC)).check()
    return found


def job_of(
    definition: Definition, name: str, at: datetime, known: list[JobSpec], settings: Settings
) -> JobSpec:
    """The job of a schedule's run. Raises UnknownTask."""
    if has_actions(definition.metadata):
        return actions_job(settings.default_queue)
    key = tick_key(name, at)
    return pick_job(by_name(known), definition.task, key, settings.default_job, settings.default_queue)


def run_metadata(definition: Definition, name: str, tick: datetime, source: str) -> dict[str, Any]:
    """What a schedule's run carries."""
    metadata: dict[str, Any] = {
        **(definition.metadata or {}),
        "schedule": {"name": name, "tick": tick_name(tick), "source": source},
    }
    for field in ("task", "agent_id", "payload"):
        value = getattr(definition, field)
        if value is not None:
            metadata[field] = value
    return metadata


def check_run(definition: Definition, name: str, at: datetime) -> None:
    """Hold what the runs will carry to the rules of POST /ai/run. Raises BadSchedule."""
    metadata = run_metadata(definition, name, at, "scheduler")
    try:
        RunRequest.model_validate({"key": tick_key(name, at), "metadata": metadata})
    except ValidationError as error:
        wrong = error.errors()[0]
        why = wrong["msg"].removeprefix("Value error, ")
        raise BadSchedule("metadata", f"{'.'.join(map(str, wrong['loc']))}: {why}") from None


def _check_job(definition: Definition, name: str, at: datetime, settings: Settings) -> Operation[None]:
    """Raises UnknownTask, and BadSchedule for what no run may carry and for a queue that nobody serves."""
    check_run(definition, name, at)
    known = yield from jobs.registered()
    job_of(definition, name, at, known, settings)
    queues = {settings.default_queue, *(spec.queue for spec in known)}
    if definition.queue is not None and definition.queue not in queues:
        raise BadSchedule("queue", f"no registered job uses this queue; known: {', '.join(sorted(queues))}")


def _first_tick(definition: Definition, anchor_at: datetime, now: datetime) -> datetime:
    """Raises BadSchedule for a schedule that would never tick."""
    tick = definition.timing(anchor_at).next_after(now)
    if tick is None:
        field = "at" if definition.at is not None else "end_at" if definition.end_at is not None else "cron"
        raise BadSchedule(field, "there is no tick after now")
    return tick


def _anchor(definition: Definition, now: datetime) -> datetime:
    return definition.start_at or now.replace(microsecond=0)


def create(
    caller_id: str, tenant_id: str, request: ScheduleRequest, settings: Settings
) -> Operation[Schedule]:
    """A new schedule; the same one again is answered like the first time.

    Raises BadSchedule, UnknownTask, ScheduleExists.
    """
    definition = definition_of(request)
    now = yield from store.clock()
    existing = yield from store.find(tenant_id, request.name)
    if existing is None:
        yield from _check_job(definition, request.name, now, settings)
        anchor_at = _anchor(definition, now)
        made = yield from store.add(
            tenant_id,
            request.name,
            definition,
            anchor_at=anchor_at,
            next_tick_at=_first_tick(definition, anchor_at, now),
            paused=request.paused,
            origin=Origin.API,
            actor=caller_id,
        )
        if made is not None:
            return made
        existing = yield from until_settled(lambda: store.find(tenant_id, request.name))
    if existing.definition != definition:
        raise ScheduleExists(request.name)
    return existing


@read_only
def find(tenant_id: str, name: str) -> Operation[Schedule]:
    """Raises ScheduleNotFound."""
    schedule = yield from store.find(tenant_id, name)
    if schedule is None:
        raise ScheduleNotFound(name)
    return schedule


@read_only
def list_all(tenant_id: str | None, limit: int, offset: int) -> Operation[tuple[int, list[Schedule]]]:
    """How many there are, and a page of them by name."""
    total = yield from store.count_all(tenant_id)
    return total, (yield from store.list_all(tenant_id, limit, offset))


def change(
    caller_id: str, tenant_id: str, name: str, patch: SchedulePatch, settings: Settings
) -> Operation[Schedule]:
    """Change the given fields. Of a schedule declared in code, these then stay as they are changed.

    Raises ScheduleNotFound, BadSchedule, UnknownTask.
    """
    schedule = yield from _locked(tenant_id, name)
    definition = definition_of(patch, schedule.definition)
    if definition == schedule.definition:
        return schedule
    yield from _check_job(definition, name, schedule.read_at, settings)
    edited = schedule.edited
    if schedule.origin is Origin.CODE:
        edited = sorted({*edited, *_changed(schedule.definition, definition)})
    return (yield from _rewrite(schedule, definition, edited, caller_id))


def _changed(old: Definition, new: Definition) -> set[str]:
    """Which fields differ. The ways of ticking are one: whoever edits one of them has edited all."""
    names = {name for name in store.DEFINITION if getattr(old, name) != getattr(new, name)}
    return names | set(TICKED_BY) if names & set(TICKED_BY) else names


def _rewrite(
    schedule: Schedule, definition: Definition, edited: list[str], actor: str
) -> Operation[Schedule]:
    """Another definition for a locked schedule. Other ticks begin after now; else the next one stays."""
    anchor_at, next_tick_at = schedule.anchor_at, schedule.next_tick_at
    if not definition.ticks_like(schedule.definition):
        if (definition.every_s, definition.start_at) != (
            schedule.definition.every_s,
            schedule.definition.start_at,
        ):
            anchor_at = _anchor(definition, schedule.read_at)
        next_tick_at = _first_tick(definition, anchor_at, schedule.read_at)
    changed = yield from store.change(
        schedule,
        definition,
        anchor_at=anchor_at,
        next_tick_at=next_tick_at,
        paused=schedule.paused_at is not None,
        edited=edited,
        actor=actor,
    )
    assert changed is not None, "its row is locked"  # noqa: S101
    return changed


def _locked(tenant_id: str, name: str) -> Operation[Schedule]:
    schedule = yield from store.lock(tenant_id, name)
    if schedule is None or schedule.deleted_at is not None:
        raise ScheduleNotFound(name)
    return schedule


def set_paused(caller_id: str, tenant_id: str, name: str, paused: bool) -> Operation[Schedule]:
    """Stop a schedule's ticks, or let it go on with the first tick after now. Raises ScheduleNotFound."""
    schedule = yield from _locked(tenant_id, name)
    if (schedule.paused_at is not None) == paused:
        return schedule
    next_tick_at = schedule.next_tick_at
    if not paused and next_tick_at is not None:
        next_tick_at = schedule.timing.next_after(schedule.read_at)
    changed = yield from store.change(
        schedule,
        schedule.definition,
        anchor_at=schedule.anchor_at,
        next_tick_at=next_tick_at,
        paused=paused,
        edited=schedule.edited,
        actor=caller_id,
    )
    assert changed is not None, "its row is locked"  # noqa: S101
    return changed


@autocommit
def delete(caller_id: str, tenant_id: str, name: str) -> Operation[None]:
    """Remove a schedule and its history. Raises ScheduleNotFound."""
    gone = yield from store.delete(tenant_id, name, caller_id)
    if not gone:
        raise ScheduleNotFound(name)


@dataclass(frozen=True, slots=True)
class Declared:
    """What became of the schedules that a worker's code declares."""

    kept: list[str]
    """Names that belong to a schedule made over the API: it stays as it is."""
    deleted: list[str]
    """Names that were deleted over the API: they stay deleted."""


def declare(requests: Iterable[ScheduleRequest], settings: Settings) -> Operation[Declared]:
    """Bring the schedules declared in code up to date, but for what was edited over the API since.

    Raises BadSchedule.
    """
    tenant_id, found = settings.schedule_tenant, Declared([], [])
    yield from account.ensure_tenant(tenant_id, Plan(settings.default_plan))
    for request in sorted(requests, key=lambda request: request.name):
        definition = definition_of(request)
        schedule = yield from store.lock(tenant_id, request.name)
        if schedule is None:
            yield from _declare_new(tenant_id, request.name, definition)
        elif schedule.origin is not Origin.CODE:
            found.kept.append(request.name)
        elif schedule.deleted_at is not None:
            found.deleted.append(request.name)
        else:
            edited = {name: getattr(schedule.definition, name) for name in schedule.edited}
            definition = replace(definition, **edited)
            if definition != schedule.definition:
                yield from _rewrite(schedule, definition, schedule.edited, BY_CODE)
    return found


def _declare_new(tenant_id: str, name: str, definition: Definition) -> Operation[None]:
    now = yield from store.clock()
    anchor_at = _anchor(definition, now)
    # None where another worker was faster: it has declared the same.
    yield from store.add(
        tenant_id,
        name,
        definition,
        anchor_at=anchor_at,
        next_tick_at=_first_tick(definition, anchor_at, now),
        paused=False,
        origin=Origin.CODE,
        actor=BY_CODE,
    )
