"""The job that carries a governed tool call out."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.errors import SecretUnreadable
from onceonly_jobs.services import claims, tools
from onceonly_jobs.services.calls import idempotency_key
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.store.tools import Tool, for_call
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.outcomes import Costed, Fail, OutcomeUnknown
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.tool_call import ToolCall, ToolOutcome, ToolSpec, call_tool

logger = logging.getLogger(__name__)


def carry_out(ctx: JobContext, runtime: Runtime, allowed: Allowed) -> dict[str, Any] | Costed:
    """The tool's answer as the run's result. Raises Fail and OutcomeUnknown, as the call ended."""
    wanted = ctx.metadata
    spec = _spec(ctx, runtime, wanted["tool"])
    call = ToolCall(
        agent_id=wanted["agent_id"],
        tool=wanted["tool"],
        args=wanted["args"],
        spend_usd=wanted["spend_usd"],
        run_id=wanted.get("run_id"),
        request_id=f"{ctx.key}#{ctx.attempt}",
        idempotency_key=idempotency_key(ctx.tenant, ctx.key, ctx.first_seen_at),
    )
    return _result(call_tool(spec, call, allowed=allowed, stop=lambda: not _may_repeat(ctx, runtime)))


def _may_repeat(ctx: JobContext, runtime: Runtime) -> bool:
    """Whether the run is still this worker's. The next heartbeat would tell, but a switch may have answered by then."""
    try:
        return runtime.database.run(claims.is_current, ctx.tenant, ctx.key, ctx.fencing_token)
    except SQLAlchemyError as error:
        logger.warning("run %s: not repeated, the database is away: %s", ctx.key, brief(error))
        return False


@autocommit
def _registered(tenant_id: str, agent_id: str, name: str) -> Operation[Tool | None]:
    return (yield from for_call(tenant_id, agent_id, name))


def _spec(ctx: JobContext, runtime: Runtime, name: str) -> ToolSpec:
    """The tool as it is registered now, under the effect of the claim, which is never the more harmless one.

    Raises Fail where it can't be called: then nothing was sent. Raises OutcomeUnknown where an earlier attempt may
    have made the call.
    """
    tool = runtime.database.run(_registered, ctx.tenant, ctx.metadata["agent_id"], name)
    if tool is None or not tool.enabled:
        raise _not_made("the tool was removed or switched off before it was called")
    claimed = Effect(ctx.effect or Effect.IRREVERSIBLE)
    if not claimed.at_least_as_strict_as(tool.effect):
        # Changed since the claim, whose effect is what counts should this worker die.
        if ctx.attempt > 1 and not tool.effect.repeatable:
            raise OutcomeUnknown(
                "an earlier attempt may have made the call, and its tool can't be called twice"
            )
        raise _not_made("the tool was changed just before it was called")
    try:
        secret = tools.secret_of(tool, tools.vault_of(runtime.settings))
    except SecretUnreadable as error:
        raise _not_made(f"the tool's secret can't be read: {error}") from error
    return ToolSpec(
        name=tool.name,
        url=tool.url,
        secret=secret,
        timeout_ms=tool.timeout_ms,
        max_retries=tool.max_retries,
        effect=claimed,
    )


def _not_made(message: str) -> Fail:
    result = {"error": "tool_error", "status": None, "message": message}
    return Fail("tool_error", message, result=result, repeatable=True, never_made=True)


def _result(outcome: ToolOutcome) -> dict[str, Any] | Costed:
    if outcome.kind == "executed":
        return outcome.result if outcome.cost_usd is None else Costed(outcome.result, outcome.cost_usd)
    message = str(outcome.result.get("message", "tool error"))
    if outcome.unknown:
        raise OutcomeUnknown(message, outcome.result)
    raise Fail("tool_error", message, result=outcome.result, repeatable=True, never_made=not outcome.sent)
