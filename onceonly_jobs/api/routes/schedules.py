"""/schedules: runs by cron expression, interval or at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.api.state import State
from onceonly_jobs.contracts.fields import utc_iso
from onceonly_jobs.contracts.leases import LeaseAnswer
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.contracts.schedules import (
    BackfillAnswer,
    BackfillRequest,
    DeletedScheduleAnswer,
    NextAnswer,
    ScheduleAnswer,
    ScheduleName,
    SchedulePatch,
    ScheduleRequest,
    SchedulesAnswer,
    TicksAnswer,
    TriggerRequest,
)
from onceonly_jobs.domain.schedules import BadSchedule
from onceonly_jobs.services import schedules, ticks
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.services.ticks import Coming, Started
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.store.schedules import Schedule
from onceonly_jobs.store.ticks import RecordedTick


class _ScheduleRoute(ContractRoute):
    """Says which field of a schedule can't be used."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except BadSchedule as error:
                raise invalid(("body", error.field), str(error)) from None

        return told


router = APIRouter(route_class=_ScheduleRoute, prefix="/schedules", tags=["schedules"])

Named = Annotated[ScheduleName, Path()]


@router.post("", response_model=ScheduleAnswer, summary="Make a schedule", responses=problems(400, 409, 413))
async def create(body: ScheduleRequest, state: Held, caller: Asking) -> JSONResponse:
    """With exactly one of `cron`, `every_s` and `at`. Each tick is a run under the key `cron:<name>:<tick>`, governed
    and metered like any run. The same schedule again is answered like the first time; another one of that name is
    refused with 409. Unknown fields are refused."""
    made = await state.db.arun(schedules.create, caller.key_id, caller.tenant_id, body, state.settings)
    return JSONResponse(_shown(made))


@router.get("", response_model=SchedulesAnswer, summary="All schedules")
async def list_schedules(
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> JSONResponse:
    """By name. Not metered."""
    total, page = await state.db.arun(schedules.list_all, caller.tenant_id, limit, offset)
    return JSONResponse({"total": total, "items": [_shown(schedule) for schedule in page]})


@router.get("/{name}", response_model=ScheduleAnswer, summary="One schedule", responses=problems(404))
async def get_schedule(name: Named, state: Held, caller: Asking) -> JSONResponse:
    """Its definition, and when it ticks next. Not metered."""
    return JSONResponse(_shown(await state.db.arun(schedules.find, caller.tenant_id, name)))


@router.patch(
    "/{name}",
    response_model=ScheduleAnswer,
    summary="Change a schedule",
    responses=problems(400, 404, 413),
)
async def patch_schedule(name: Named, body: SchedulePatch, state: Held, caller: Asking) -> JSONResponse:
    """Absent fields stay, null sets one back to its default. Other times take effect with the first tick after now.
    What is changed here of a schedule that code declares stays so: see `edited`."""
    changed = await state.db.arun(
        schedules.change, caller.key_id, caller.tenant_id, name, body, state.settings
    )
    return JSONResponse(_shown(changed))


@router.delete(
    "/{name}",
    response_model=DeletedScheduleAnswer,
    summary="Remove a schedule",
    responses=problems(404),
)
async def delete_schedule(name: Named, state: Held, caller: Asking) -> JSONResponse:
    """Removes it with its history; its runs stay. One that code declares stays removed until it is made again here."""
    await state.db.arun(schedules.delete, caller.key_id, caller.tenant_id, name)
    return JSONResponse({"ok": True, "deleted": name})


@router.post(
    "/{name}/pause", response_model=ScheduleAnswer, summary="Pause a schedule", responses=problems(404)
)
async def pause(name: Named, state: Held, caller: Asking) -> JSONResponse:
    """No more ticks until it is resumed. What is queued or running goes on."""
    return JSONResponse(_shown(await _set_paused(state, caller.key_id, caller.tenant_id, name, True)))


@router.post(
    "/{name}/resume", response_model=ScheduleAnswer, summary="Resume a schedule", responses=problems(404)
)
async def resume(name: Named, state: Held, caller: Asking) -> JSONResponse:
    """Goes on with the first tick after now. The ticks of the pause are dropped, whatever the misfire policy; a
    backfill brings them back."""
    return JSONResponse(_shown(await _set_paused(state, caller.key_id, caller.tenant_id, name, False)))


async def _set_paused(state: State, actor: str, tenant_id: str, name: str, paused: bool) -> Schedule:
    return await state.db.arun(schedules.set_paused, actor, tenant_id, name, paused)


@router.post(
    "/{name}/trigger",
    response_model=LeaseAnswer,
    response_model_exclude_unset=True,
    summary="Run a schedule's job now",
    responses=problems(400, 402, 404, 413),
)
async def trigger(name: Named, state: Held, caller: Asking, body: TriggerRequest | None = None) -> Response:
    """A run under the key `trigger:<name>:<id>`, answered like POST /ai/run. Its ticks go on as they would; pause and
    overlap policy don't matter here."""
    trigger_id = None if body is None else body.id
    started = await state.db.arun(ticks.trigger, caller, name, trigger_id, state.settings)
    return answers.taken(caller.plan, _published(state, started))


@router.post(
    "/{name}/backfill",
    response_model=BackfillAnswer,
    summary="Make up for past ticks",
    responses=problems(400, 402, 404, 413),
)
async def backfill(name: Named, body: BackfillRequest, state: Held, caller: Asking) -> JSONResponse:
    """A run for each tick from `from` to `to`, at most 500, that has none. Repeating it makes no further runs while
    the keys' retention lasts (7 days). The overlap policy doesn't matter here."""
    wanted = await state.db.arun(ticks.backfill_ticks, caller.tenant_id, name, body)
    taken = []
    for tick in wanted:
        started = await state.db.arun(ticks.backfill_tick, caller, name, tick, state.settings)
        taken.append(_published(state, started))
    counts = {
        word: sum(run.outcome == outcome for run in taken)
        for word, outcome in (("created", "acquired"), ("existing", "held"), ("refused", "refused"))
    }
    keys = [run.run.key for run in taken]
    return JSONResponse({"ok": True, "name": name, "ticks": len(taken), **counts, "keys": keys})


def _published(state: State, started: Started) -> Taken:
    if isinstance(started.taken, Refused):
        raise started.taken.refusal
    if started.due is not None:
        state.publisher.submit(started.due)
    return started.taken


@router.get("/{name}/next", response_model=NextAnswer, summary="The next ticks", responses=problems(404))
async def next_ticks(
    name: Named, state: Held, caller: Asking, n: Annotated[int, Query(ge=1, le=100)] = 10
) -> JSONResponse:
    """Of a paused schedule, as if it were resumed now. Not metered."""
    schedule = await state.db.arun(schedules.find, caller.tenant_id, name)
    local = ZoneInfo(schedule.definition.tz)
    items = [_coming(one, local) for one in ticks.coming(schedule, n)]
    return JSONResponse({"name": name, "items": items})


def _coming(one: Coming, local: ZoneInfo) -> dict[str, Any]:
    return {
        "tick": utc_iso(one.tick),
        "local": one.tick.astimezone(local).isoformat(),
        "due_at": utc_iso(one.due_at),
        "key": one.key,
    }


@router.get(
    "/{name}/ticks", response_model=TicksAnswer, summary="What became of the ticks", responses=problems(404)
)
async def past_ticks(
    name: Named,
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> JSONResponse:
    """The latest first: `fired` (its run is under `key`), `skipped` by the overlap policy, `misfired` by the misfire
    policy, or `refused`. Kept as long as finished runs (7 days). Not metered."""
    found = await state.db.arun(ticks.latest, caller.tenant_id, name, limit, offset)
    return JSONResponse({"name": name, "items": [_tick(tick) for tick in found]})


def _tick(tick: RecordedTick) -> dict[str, Any]:
    return {
        "tick": utc_iso(tick.tick_at),
        "key": tick.key,
        "state": tick.state.value,
        "source": tick.source,
        "detail": tick.detail,
        "recorded_at": utc_iso(tick.recorded_at),
    }


def _shown(schedule: Schedule) -> dict[str, Any]:
    definition = schedule.definition
    return {
        "name": schedule.name,
        "status": schedule.status,
        "task": definition.task,
        "cron": definition.cron,
        "every_s": definition.every_s,
        "at": utc_iso(definition.at),
        "tz": definition.tz,
        "start_at": utc_iso(definition.start_at),
        "end_at": utc_iso(definition.end_at),
        "payload": definition.payload,
        "metadata": definition.metadata,
        "agent_id": definition.agent_id,
        "queue": definition.queue,
        "ttl": definition.ttl_s,
        "misfire": definition.misfire.value,
        "misfire_grace_s": definition.misfire_grace_s,
        "catch_up_limit": definition.catch_up_limit,
        "jitter_s": definition.jitter_s,
        "overlap": definition.overlap.value,
        "next_tick_at": utc_iso(schedule.next_tick_at),
        "last_tick_at": utc_iso(schedule.last_tick_at),
        "paused_at": utc_iso(schedule.paused_at),
        "origin": schedule.origin.value,
        "edited": schedule.edited,
        "version": schedule.version,
        "created_at": utc_iso(schedule.created_at),
        "created_by": schedule.created_by,
        "updated_at": utc_iso(schedule.updated_at),
        "updated_by": schedule.updated_by,
    }
