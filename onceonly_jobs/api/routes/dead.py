"""/dead: runs that failed for good, until somebody replays or discards them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.routes.events import Name, Offset
from onceonly_jobs.contracts.dead import (
    DeadAnswer,
    DeadDetailsAnswer,
    DiscardAnswer,
    DiscardRequest,
    ReplayAnswer,
    ReplayRequest,
)
from onceonly_jobs.contracts.fields import Key, utc_iso
from onceonly_jobs.contracts.problem import Problem, problems
from onceonly_jobs.services import dead
from onceonly_jobs.store.dead import DeadLetter, Wanted

router = APIRouter(route_class=ContractRoute, tags=["dead letters"])

CONFLICT = "Not a dead letter, or not the failure of this `decision_id` any more; `reason` says which."
REFUSALS: dict[int | str, dict[str, Any]] = problems(404, 413) | {
    409: {"model": Problem, "description": CONFLICT}
}


@router.get("/dead", response_model=DeadAnswer, summary="Dead letters")
async def list_dead(
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Offset = 0,
    task: Annotated[Name | None, Query(description="Runs of this job.")] = None,
    agent_id: Annotated[Name | None, Query(description="Runs of this agent.")] = None,
) -> JSONResponse:
    """Runs that used up their attempts, or killed too many workers. Oldest first. Not metered."""
    wanted = Wanted(tenant_id=caller.tenant_id, job=task, agent_id=agent_id)
    total, letters = await state.db.arun(dead.letters, wanted, limit, offset)
    return JSONResponse({"total": total, "items": [_item(letter) for letter in letters]})


def _item(letter: DeadLetter) -> dict[str, Any]:
    same = (
        "key",
        "run_id",
        "queue",
        "agent_id",
        "schedule",
        "attempt",
        "max_attempts",
        "failures",
        "crashes",
    )
    return {
        **{name: getattr(letter, name) for name in same},
        "task": letter.job,
        "error_code": letter.error_code,
        "message": letter.message,
        "first_seen_at": utc_iso(letter.first_seen_at),
        "dead_at": utc_iso(letter.done_at),
        "retain_until": utc_iso(letter.retain_until_at),
        "decision_id": letter.decision_id,
    }


@router.get(
    "/dead/{key:text}", response_model=DeadDetailsAnswer, summary="One dead letter", responses=problems(404)
)
async def show_dead(key: Key, state: Held, caller: Asking) -> JSONResponse:
    """What it was asked for, what is known of each start that did not end well, and its latest events."""
    details, events = await state.db.arun(dead.show, caller.tenant_id, key)
    body = {
        **_item(details.letter),
        "metadata": details.metadata,
        "result": details.result,
        "errors": details.errors,
        "events": [answers.timeline_event(event) for event in events],
    }
    return JSONResponse(body)


@router.post("/dead/replay", response_model=ReplayAnswer, summary="Replay a dead letter", responses=REFUSALS)
async def replay(body: ReplayRequest, state: Held, caller: Asking) -> JSONResponse:
    """The run is queued again with all of its attempts, under the same key, and whoever asks for that key waits
    for it. Not metered, and not charged to its agent again. A repeat is answered like the first."""
    replayed = await state.db.arun(
        dead.replay,
        caller.tenant_id,
        caller.key_id,
        body.key,
        body.decision_id,
        state.settings.publish_grace_s,
    )
    if replayed.due is not None:
        state.publisher.submit(replayed.due)
    fate = replayed.fate
    state.hints.moved_here(caller.tenant_id, fate.run_id)
    return JSONResponse(
        {
            "ok": True,
            "status": "replayed",
            "key": body.key,
            "run_id": fate.run_id,
            "decision_id": fate.decision_id,
            "replays": fate.replays,
            "replayed_by": fate.actor,
            "replayed_at": utc_iso(fate.at),
        }
    )


@router.post(
    "/dead/discard", response_model=DiscardAnswer, summary="Discard a dead letter", responses=REFUSALS
)
async def discard(body: DiscardRequest, state: Held, caller: Asking) -> JSONResponse:
    """It is listed no more, and stays failed under its key until its retention is over. A repeat is answered like
    the first, whose reason stays."""
    fate = await state.db.arun(
        dead.discard, caller.tenant_id, caller.key_id, body.key, body.reason, body.decision_id
    )
    state.hints.moved_here(caller.tenant_id, fate.run_id)
    return JSONResponse(
        {
            "ok": True,
            "status": "discarded",
            "key": body.key,
            "run_id": fate.run_id,
            "decision_id": fate.decision_id,
            "reason": fate.reason,
            "discarded_by": fate.actor,
            "discarded_at": utc_iso(fate.at),
        }
    )
