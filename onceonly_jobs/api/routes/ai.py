"""/ai/*: runs by key, and leases for work that the caller does."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.express import Ask, Sent
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.api.state import State
from onceonly_jobs.api.toolcalls import call_tool, quick_call
from onceonly_jobs.api.waiting import read_or_wait
from onceonly_jobs.contracts.fields import Key, utc_iso
from onceonly_jobs.contracts.leases import (
    CancelAnswer,
    CancelRequest,
    CompleteAnswer,
    CompleteRequest,
    ExtendAnswer,
    ExtendRequest,
    FailAnswer,
    FailRequest,
    LeaseAnswer,
    LeaseRequest,
    ResultAnswer,
    StatusAnswer,
)
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.contracts.runs import RunRequest
from onceonly_jobs.domain.actions import has_actions
from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.plans import LIMITS, Kind
from onceonly_jobs.errors import FingerprintMismatch
from onceonly_jobs.services import leases, runs
from onceonly_jobs.services.quota import Refused, is_beyond, tell_beyond
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.runs import Taken, Taking


async def quick_run(state: State, caller: Caller, sent_body: Any, sent: Sent) -> Ask | None:
    """A run or a tool call, for a plan that does not stop: taken or judged together with concurrent requests."""
    body = RunRequest.model_validate(sent_body)
    if LIMITS[caller.plan].hard_stop:
        return None
    if body.key is None:
        return quick_call(state, caller, body, sent.prefer)
    if has_actions(body.metadata):
        return None
    taking = await _wanted(state, caller, body, body.key, vouched=True)
    gathered = state.governed if taking.governed else state.takings

    async def ask() -> Response | None:
        taken = await gathered.ask(taking)
        if taken is None:
            return None
        if taken.outcome == "acquired" and is_beyond(caller, Kind.AI, taken.usage):
            await state.db.arun(tell_beyond, caller, Kind.AI)
        return _answered(state, caller, taking, taken)

    return ask


router = APIRouter(route_class=ContractRoute, prefix="/ai", tags=["runs and leases"])

Wait = Annotated[
    float,
    Query(
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Long poll: answer as soon as the run is finished, at the latest after this many seconds "
        "(the server's limit is 30 unless configured).",
    ),
]


@router.post(
    "/run",
    response_model=LeaseAnswer,
    response_model_exclude_unset=True,
    summary="Ask for a run",
    responses=problems(400, 402, 403, 404, 409, 413),
)
async def run(body: RunRequest, request: Request, state: Held, caller: Asking) -> Response:
    """The first call with a key starts the run and is answered `acquired`; later ones attach to it and see
    `polling`, `completed` (with the result) or `failed`. The job is `metadata.task`, else the job whose
    pattern matches the key, else the server's default. `ttl` is the run's time limit.

    With `metadata.actions`, a list of `{"tool", "args"?, "spend_usd"?}`, the run makes these tool calls in order
    for `metadata.agent_id`, each judged like a call by tool; with `metadata.dry_run` it only says how each would be
    judged."""
    if body.key is None:
        return await call_tool(state, caller, body, request.headers.get("prefer"))
    taking = await _wanted(state, caller, body, body.key)
    return _answered(state, caller, taking, await _take(state, caller, taking))


async def _wanted(
    state: State, caller: Caller, body: RunRequest, key: str, *, vouched: bool = False
) -> Taking:
    """What the request wants to put under its key. Raises UnknownTask, FeatureNotAvailable."""
    if has_actions(body.metadata):
        job = runs.actions_job(state.settings.default_queue)
    else:
        job = await state.catalogue.pick((body.metadata or {}).get("task"), key)
    return runs.job_taking(
        caller,
        job,
        key=key,
        ttl_s=body.ttl,
        metadata=body.metadata,
        fingerprint=body.fingerprint,
        publish_grace_s=0 if state.publisher.full(job.queue) else state.settings.publish_grace_s,
        retention_s=state.settings.retention_s,
        vouched=vouched,
    )


def _answered(state: State, caller: Caller, taking: Taking, taken: Taken) -> Response:
    if taken.outcome == "mismatch":
        raise FingerprintMismatch(taking.key)
    if taken.outcome == "acquired":
        state.publisher.submit(_due(taking, taken))
    return answers.taken(caller.plan, taken)


@router.post(
    "/lease",
    response_model=LeaseAnswer,
    response_model_exclude_unset=True,
    summary="Claim a key for own work",
)
async def lease(body: LeaseRequest, state: Held, caller: Asking) -> Response:
    """`acquired` gives a `lease_id` to extend, complete, fail or cancel with. An expired lease may be taken
    over by the next caller; from then on the old holder's calls are refused."""
    return answers.taken(caller.plan, await _take(state, caller, runs.lease_taking(caller, body)))


async def _take(state: State, caller: Caller, taking: Taking) -> Taken:
    taken = await state.db.arun(runs.taking_operation(caller, taking), caller, taking)
    if isinstance(taken, Refused):
        raise taken.refusal
    return taken


def _due(taking: Taking, taken: Taken) -> Due:
    return Due(
        id=taken.run.id,
        tenant_id=taking.tenant_id,
        key=taking.key,
        agent_id=taking.agent_id,
        job=taking.job or "",
        queue=taking.queue or "",
        due_at=taken.run.read_at,
    )


@router.get("/status", response_model=StatusAnswer, summary="How far is it?", responses=problems(404))
async def status(key: Annotated[Key, Query()], state: Held, caller: Asking, wait: Wait = 0) -> JSONResponse:
    """Not metered. Consistent with every complete or fail that was answered before."""
    return answers.status(await read_or_wait(state, caller.tenant_id, key, wait))


@router.get("/result", response_model=ResultAnswer, summary="What came of it?", responses=problems(404))
async def result(key: Annotated[Key, Query()], state: Held, caller: Asking, wait: Wait = 0) -> JSONResponse:
    """Not metered, safe to repeat for the retention time (7 days)."""
    return answers.result(await read_or_wait(state, caller.tenant_id, key, wait))


@router.post(
    "/extend", response_model=ExtendAnswer, summary="Keep a lease", responses=problems(404, 409, 413)
)
async def extend(body: ExtendRequest, state: Held, caller: Asking) -> JSONResponse:
    """Sets the deadline to now + `ttl`; for a run, its time limit."""
    run = await state.db.arun(leases.extend, caller, body, state.settings.retention_s)
    return JSONResponse(
        {"ok": True, "status": "extended", "key": run.key, "ttl": run.lease_ttl_s, "version": run.version}
    )


@router.post(
    "/complete",
    response_model=CompleteAnswer,
    summary="Finish a lease with its result",
    responses=problems(404, 409, 413),
)
async def complete(body: CompleteRequest, state: Held, caller: Asking) -> JSONResponse:
    """A repeat by the same lease is answered like the first time, and the first result stays."""
    _check_size(body.result, state.settings.max_result_bytes)
    run = await state.db.arun(leases.complete, caller, body, state.settings.retention_s)
    await state.hints.finished(caller.tenant_id, run.key)
    return JSONResponse(
        {
            "ok": True,
            "status": "completed",
            "key": run.key,
            "version": run.version,
            "done_at": utc_iso(run.done_at),
            "result_hash": run.result_hash,
        }
    )


def _check_size(result: dict[str, Any] | None, limit: int) -> None:
    size = 0 if result is None else len(compact_json(result))
    if size > limit:
        raise invalid(("body", "result"), f"result is {size} bytes as compact JSON; at most {limit} are kept")


@router.post(
    "/fail", response_model=FailAnswer, summary="Finish a lease as failed", responses=problems(404, 409, 413)
)
async def fail(body: FailRequest, state: Held, caller: Asking) -> JSONResponse:
    """Sticky for the retention time: later calls with this key are answered `failed`."""
    run = await state.db.arun(leases.fail, caller, body, state.settings.retention_s)
    await state.hints.finished(caller.tenant_id, run.key)
    return JSONResponse(
        {
            "ok": True,
            "status": "failed",
            "key": run.key,
            "version": run.version,
            "error_code": run.error_code,
            "done_at": utc_iso(run.done_at),
        }
    )


@router.post(
    "/cancel",
    response_model=CancelAnswer,
    summary="Give a lease or run up",
    responses=problems(404, 409, 413),
)
async def cancel(body: CancelRequest, state: Held, caller: Asking) -> JSONResponse:
    """Readers then see `failed` with the code `cancelled`; the key can be acquired again."""
    run = await state.db.arun(leases.cancel, caller, body, state.settings.retention_s)
    await state.hints.finished(caller.tenant_id, run.key)
    return JSONResponse({"ok": True, "status": "cancelled", "key": run.key, "version": run.version})
