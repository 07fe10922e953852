"""/ai/unknown and /ai/settle: calls that may have happened, until somebody says whether they did."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.contracts.fields import utc_iso
from onceonly_jobs.contracts.problem import Problem, problems
from onceonly_jobs.contracts.unknown import SettleAnswer, SettleRequest, UnknownAnswer
from onceonly_jobs.domain.governance import usd
from onceonly_jobs.services import unknown
from onceonly_jobs.services.calls import idempotency_key
from onceonly_jobs.store.unknown import UnknownCall, Verdict

router = APIRouter(route_class=ContractRoute, prefix="/ai", tags=["governance"])

CONFLICT = "The outcome of this call is not unknown, or it was settled the other way; `reason` says which."


@router.get("/unknown", response_model=UnknownAnswer, summary="Calls of unknown outcome")
async def list_unknown(
    state: Held,
    caller: Asking,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> JSONResponse:
    """Tool calls that were sent and never answered, and that may not be sent twice. Oldest first. Each is held,
    with what it reserved, until it is settled. Not metered."""
    total, calls = await state.db.arun(unknown.list_calls, caller.tenant_id, limit, offset)
    return JSONResponse({"total": total, "items": [_item(call) for call in calls]})


def _item(call: UnknownCall) -> dict[str, Any]:
    return {
        "key": call.key,
        "agent_id": call.agent_id,
        "tool": call.tool,
        "effect": call.effect,
        "args": call.args,
        "run_id": call.run_id,
        "since": utc_iso(call.started_at),
        "message": call.message,
        "reserved_usd": usd(call.reserved_micro_usd),
        "decision_id": call.decision_id,
        "idempotency_key": idempotency_key(call.tenant_id, call.key, call.first_seen_at),
        "confirmations": call.confirmations,
        "confirm_at": utc_iso(call.confirm_at),
    }


@router.post(
    "/settle",
    response_model=SettleAnswer,
    summary="Settle an unknown outcome",
    responses=problems(404, 413) | {409: {"model": Problem, "description": CONFLICT}},
)
async def settle(body: SettleRequest, state: Held, caller: Asking) -> JSONResponse:
    """`happened`: the call is completed, repeats of it get `result`, and its cost is booked. Otherwise it is failed
    with `did_not_happen`, what it reserved is given back, and a repeat is sent. A repeated settlement is answered
    like the first; one that contradicts it is refused with 409. Not metered."""
    why = unknown.too_large(body, state.settings.max_result_bytes)
    if why is not None:
        raise invalid(("body", "result"), why)
    retention_s = state.settings.retention_s
    verdict = await state.db.arun(unknown.settle, caller.tenant_id, caller.key_id, body, retention_s)
    await state.hints.finished(caller.tenant_id, body.key)
    return JSONResponse(_settled(verdict))


def _settled(verdict: Verdict) -> dict[str, Any]:
    run = verdict.run
    return {
        "ok": True,
        "status": "settled",
        "key": run.key,
        "happened": verdict.happened,
        "outcome": run.state.value,
        "error_code": run.error_code,
        "result": run.result,
        "version": run.version,
        "decision_id": verdict.decision_id,
        "settled_by": verdict.actor,
        "settled_at": utc_iso(verdict.at),
    }
