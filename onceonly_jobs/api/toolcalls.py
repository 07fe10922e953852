"""POST /ai/run by tool: decide, hand over to a worker, wait, and answer in the contract's words."""

from __future__ import annotations

import re
from typing import Any

from fastapi.responses import JSONResponse

from onceonly_jobs.api.express import Ask
from onceonly_jobs.api.problems import invalid
from onceonly_jobs.api.state import State
from onceonly_jobs.api.waiting import wait_until_settled
from onceonly_jobs.contracts.fields import utc_iso
from onceonly_jobs.contracts.runs import RunRequest
from onceonly_jobs.domain.governance import REASONS, Code, risk_level, usd
from onceonly_jobs.domain.plans import LIMITS
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.errors import BudgetExceeded, CallInProgress, ToolNotFound
from onceonly_jobs.services import calls
from onceonly_jobs.services.calls import Answer, Wanted
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.outbox import Due

PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})\b")


async def call_tool(state: State, caller: Caller, body: RunRequest, prefer: str | None) -> JSONResponse:
    """The decision on a call, and its result once there is one.

    Raises ToolNotFound, BudgetExceeded, PlanLimitReached, and CallInProgress for a tool that outlasts the
    caller's patience.
    """
    wanted = _wanted(state, body)
    judge = calls.judge_capped if LIMITS[caller.plan].hard_stop else calls.judge
    try:
        judged = await state.db.arun(judge, caller, wanted)
    except ValueError as error:
        raise invalid(("body", "args"), str(error)) from None
    if isinstance(judged, Refused):
        raise judged.refusal
    return await _carried_out(state, caller, wanted, judged, prefer)


def quick_call(state: State, caller: Caller, body: RunRequest, prefer: str | None) -> Ask:
    """`call_tool` for a plan that does not stop: judged together with concurrent calls."""
    wanted = _wanted(state, body)
    asked = calls.asked(caller, wanted)

    async def ask() -> JSONResponse | None:
        judged = await state.calls.ask(asked)
        return None if judged is None else await _carried_out(state, caller, wanted, judged, prefer)

    return ask


def _wanted(state: State, body: RunRequest) -> Wanted:
    return Wanted(
        agent_id=body.agent_id or "",
        tool=body.tool or "",
        args=body.args or {},
        spend_usd=body.spend_usd or 0.0,
        queue=state.settings.default_queue,
        publish_grace_s=state.settings.publish_grace_s,
    )


async def _carried_out(
    state: State, caller: Caller, wanted: Wanted, judged: Judged, prefer: str | None
) -> JSONResponse:
    if judged.code is Code.NOT_FOUND:
        raise ToolNotFound(wanted.tool, wanted.agent_id)
    if judged.limit is not None:
        raise BudgetExceeded(_refusal(wanted, judged))
    if judged.run is None or judged.code not in (Code.OK, Code.IDEMPOTENCY):
        return _shown(wanted, calls.refusal(judged.code))
    if judged.code is Code.OK:
        state.publisher.submit(_due(caller, wanted, judged, judged.run))
    run = await wait_until_settled(state, caller.tenant_id, judged.run, _patience_s(state, prefer))
    answer = calls.answer_of(judged.code, run)
    if answer is None:
        raise CallInProgress(run.key)
    return _shown(wanted, answer)


def _patience_s(state: State, prefer: str | None) -> float:
    """How long the caller waits: `Prefer: wait=<seconds>`, at most the server's own patience."""
    asked = PREFER_WAIT.search(prefer or "")
    most = state.settings.tool_patience_s
    return most if asked is None else min(most, float(asked.group(1)))


def _due(caller: Caller, wanted: Wanted, judged: Judged, run: Run) -> Due:
    return Due(
        id=run.id,
        tenant_id=caller.tenant_id,
        key=run.key,
        agent_id=wanted.agent_id,
        job=judged.job,
        queue=judged.queue,
        due_at=run.read_at,
    )


def _shown(wanted: Wanted, answer: Answer) -> JSONResponse:
    body = {
        "ok": answer.ok,
        "allowed": answer.allowed,
        "decision": answer.decision,
        "policy_reason": REASONS[answer.code],
        "policy_code": answer.code.value,
        "risk_level": risk_level(wanted.tool),
        "result": answer.result,
    }
    return JSONResponse(body)


def _refusal(wanted: Wanted, judged: Judged) -> dict[str, Any]:
    """A limit's refusal, in the seed's words and with what is needed to understand it."""
    limit, used, requested, message = _numbers(wanted, judged)
    return {
        "error": REASONS[judged.code],
        "message": message,
        "allowed": False,
        "decision": "blocked",
        "policy_reason": REASONS[judged.code],
        "policy_code": judged.code.value,
        "risk_level": risk_level(wanted.tool),
        "agent_id": wanted.agent_id,
        "tool": wanted.tool,
        "limit": limit,
        "used": used,
        "requested": requested,
        "resets_at": utc_iso(judged.resets_at),
    }


def _numbers(wanted: Wanted, judged: Judged) -> tuple[float, float, float, str]:
    limit, used = int(judged.limit or 0), int(judged.used or 0)
    if judged.code is Code.DAILY_SPEND:
        message = f"Daily spend limit exceeded (${usd(limit):,.2f})"
        return usd(limit), usd(used), usd(judged.cost_micro_usd), message
    if judged.code is Code.CALLS_PER_TOOL:
        return limit, used, 1, f"Tool call limit exceeded ({wanted.tool}: {limit}/day)"
    return limit, used, 1, f"Hourly action limit exceeded ({limit}/hour)"
