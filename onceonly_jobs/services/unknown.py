"""Calls whose outcome is unknown: find them, and settle them by what somebody has found out."""

from __future__ import annotations

from typing import NoReturn

from onceonly_jobs.contracts.unknown import SettleRequest
from onceonly_jobs.domain.fingerprint import compact_json, result_hash
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import NotFound, SettlementConflict, SettlementReason
from onceonly_jobs.services.calls import FUNCTION
from onceonly_jobs.services.claims import actual_micro_usd
from onceonly_jobs.services.leases import WIRE_STATES
from onceonly_jobs.store import events, runs, tools
from onceonly_jobs.store import unknown as store
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.store.tools import Tool
from onceonly_jobs.store.unknown import Settled, Settlement, UnknownCall, Verdict

CONFIRM = "onceonly.confirm"
"""The Celery task that asks a tool whether a call has happened."""


@autocommit
def list_calls(tenant_id: str | None, limit: int, offset: int) -> Operation[tuple[int, list[UnknownCall]]]:
    """How many calls wait to be settled, and a page of them, oldest first; None: of every tenant."""
    total = yield from store.total(tenant_id)
    page = yield from store.calls(tenant_id, limit, offset)
    return total, page


def settle(tenant_id: str, actor: str, request: SettleRequest, retention_s: int) -> Operation[Verdict]:
    """The settlement that stands: this one, or an equal one made before, whose result and actor then stay.

    Raises NotFound, SettlementConflict.
    """
    settled = yield from store.settle(tenant_id, _settlement(actor, request), retention_s)
    if settled is not None:
        yield from _tell(tenant_id, actor, request.happened, settled)
    verdict = yield from store.verdict(tenant_id, request.key)
    if verdict is None:
        return (yield from _refuse(tenant_id, request))
    if request.decision_id not in (None, verdict.decision_id):
        raise SettlementConflict("other_call", request.key, status=WIRE_STATES[verdict.run.state])
    if verdict.happened is not request.happened:
        raise SettlementConflict(
            "settled_otherwise", request.key, happened=verdict.happened, settled_by=verdict.actor
        )
    return verdict


def too_large(request: SettleRequest, limit_bytes: int) -> str | None:
    """Why the settlement's result can't be kept; None when it can."""
    size = 0 if request.result is None else len(compact_json(request.result))
    if size <= limit_bytes:
        return None
    return f"result is {size} bytes as compact JSON; at most {limit_bytes} are kept"


def _settlement(actor: str, request: SettleRequest) -> Settlement:
    if not request.happened:
        return Settlement(key=request.key, happened=False, actor=actor, decision_id=request.decision_id)
    result = request.result or {}
    cost_usd = result.get("cost_usd") if request.cost_usd is None else request.cost_usd
    return Settlement(
        key=request.key,
        happened=True,
        actor=actor,
        decision_id=request.decision_id,
        result=result,
        result_hash=result_hash(result),
        actual_micro_usd=actual_micro_usd(cost_usd),
    )


def _tell(tenant_id: str, actor: str, happened: bool, settled: Settled) -> Operation[None]:
    """On the timeline, who settled it and how: in the same transaction, so never without the settlement."""
    data = {
        "key": settled.run.key,
        "actor": actor,
        "happened": happened,
        "decision_id": settled.decision_id,
    }
    yield from events.append(
        tenant_id,
        settled.run.run_id,
        "settled",
        data=data,
        status=settled.run.state.value,
        tool=settled.tool,
        agent_id=settled.agent_id,
        message="the call happened" if happened else "the call did not happen",
    )


def _refuse(tenant_id: str, request: SettleRequest) -> Operation[NoReturn]:
    """Of a key whose call nobody has settled."""
    run = yield from runs.find(tenant_id, request.key)
    if run is None:
        raise NotFound(request.key)
    # Still unknown after a settlement that found nothing: it was meant for an earlier call.
    reason: SettlementReason = "other_call" if run.state is RunState.UNKNOWN else "not_unknown"
    raise SettlementConflict(reason, request.key, status=WIRE_STATES[run.state])


@autocommit
def take_confirmable(batch: int) -> Operation[list[Due]]:
    """Messages about unknown calls whose tool is to be asked now."""
    return (yield from store.take_confirmable(batch, CONFIRM))


@autocommit
def function_call(run: int) -> Operation[UnknownCall | None]:
    """An unknown call of a Python function; None when it is settled, or no such call."""
    call = yield from store.by_id(run)
    return call if call is not None and call.job.startswith(FUNCTION) else None


@autocommit
def confirmable(run: int) -> Operation[tuple[UnknownCall, Tool] | None]:
    """An unknown call and the tool to ask about it; None when it is settled, or nobody can be asked."""
    call = yield from store.by_id(run)
    if call is None or call.job.startswith(FUNCTION):
        return None
    tool = yield from tools.for_call(call.tenant_id, call.agent_id, call.tool)
    return None if tool is None or tool.confirm_url is None else (call, tool)
