"""POST /check-lock."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from onceonly_jobs.api import answers
from onceonly_jobs.api.edge import Asking, ContractRoute, Held
from onceonly_jobs.api.express import Ask, Sent
from onceonly_jobs.api.state import State
from onceonly_jobs.contracts.fields import utc_iso
from onceonly_jobs.contracts.locks import CheckLockAnswer, CheckLockRequest
from onceonly_jobs.contracts.problem import problems
from onceonly_jobs.domain.plans import LIMITS
from onceonly_jobs.errors import DuplicateBlocked, FingerprintMismatch
from onceonly_jobs.services import locks
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.locks import LockAnswer


async def quick_check(state: State, caller: Caller, body: Any, sent: Sent) -> Ask | None:
    """A check-lock for a plan that does not stop: made together with whatever else is asked for at this moment."""
    if LIMITS[caller.plan].hard_stop:
        return None
    check = locks.wanted(caller, CheckLockRequest.model_validate(body), sent.request_id, vouched=True)

    async def ask() -> Response | None:
        answer = await state.locks.ask(check)
        return None if answer is None else _shown(state, check.key, answer)

    return ask


router = APIRouter(route_class=ContractRoute, tags=["idempotency"])


@router.post(
    "/check-lock",
    response_model=CheckLockAnswer,
    summary="Has this been done already?",
    responses=problems(402, 409, 413),
)
async def check_lock(body: CheckLockRequest, request: Request, state: Held, caller: Asking) -> Response:
    """Of any number of calls with one key within `ttl` seconds, exactly one is answered `locked`; every other
    one is a `duplicate`. The lock ends `ttl` seconds after the first call."""
    check = locks.check_capped if LIMITS[caller.plan].hard_stop else locks.check
    answer = await state.db.arun(check, caller, body, request.state.request_id)
    if isinstance(answer, Refused):
        raise answer.refusal
    return _shown(state, body.key, answer)


def _shown(state: State, key: str, answer: LockAnswer) -> Response:
    if answer.status == "mismatch":
        raise FingerprintMismatch(key)
    if answer.status == "duplicate" and state.settings.duplicate_status_code == 409:
        raise DuplicateBlocked(utc_iso(answer.first_seen_at) or "")
    return answers.lock(key, answer)
