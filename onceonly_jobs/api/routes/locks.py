"""POST /check-lock."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.contracts.fields import utc_iso
from onceonly_jobs.contracts.locks import CheckLockAnswer, CheckLockRequest
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.domain.plans import LIMITS
from onceonly_jobs.errors import DuplicateBlocked
from onceonly_jobs.services import locks
from onceonly_jobs.services.quota import Refused

router = APIRouter(route_class=ContractRoute, tags=["idempotency"])


@router.post(
    "/check-lock",
    response_model=CheckLockAnswer,
    summary="Has this been done already?",
    responses=problems(402, 409, 413),
)
async def check_lock(body: CheckLockRequest, request: Request, state: Held, caller: Asking) -> JSONResponse:
    """Of any number of calls with one key within `ttl` seconds, exactly one is answered `locked`; every other
    one is a `duplicate`. The lock ends `ttl` seconds after the first call."""
    check = locks.check_capped if LIMITS[caller.plan].hard_stop else locks.check
    answer = await state.db.arun(check, caller, body, request.state.request_id)
    if isinstance(answer, Refused):
        raise answer.refusal
    if answer.status == "duplicate" and state.settings.duplicate_status_code == 409:
        raise DuplicateBlocked(utc_iso(answer.first_seen_at) or "")
    return answers.lock(body.key, answer)
