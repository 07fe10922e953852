"""A governed tool call: decided here, carried out by a worker, and answered from what came of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.fingerprint import canonical_json
from onceonly_jobs.domain.governance import Code, micro_usd, risk_level
from onceonly_jobs.domain.plans import LIMITS, Feature, Kind
from onceonly_jobs.services.governance import require
from onceonly_jobs.services.quota import Refused, counted_blocked
from onceonly_jobs.services.runs import new_lease_id
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import agents, calls, runs, tools, usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Call, Judged
from onceonly_jobs.store.statement import Operation
from onceonly_jobs.store.tools import Tool

JOB = "onceonly.tool_call"
"""The job that carries calls out. Its name can't be asked for by a run: a call is only made through a decision."""
MAX_ATTEMPTS = 5
"""How often a call is started again whose worker died, where its effect allows it."""
MAX_RUN_ID = 256
BETWEEN_ATTEMPTS_S = 60
"""At most, between two attempts of one start: pauses and what the tool asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A tool call as it was asked for."""

    agent_id: str
    tool: str
    args: dict[str, Any]
    spend_usd: float
    queue: str
    publish_grace_s: float


def call_key(agent_id: str, tool: str, hashed_args: str) -> str:
    """Where a call is kept: equal for equal agent, tool and arguments, whatever it was declared to cost."""
    digest = hashlib.sha256(canonical_json([agent_id, tool, hashed_args])).hexdigest()
    return f"tool:{tool[:64]}:{digest}"


def idempotency_key(tenant_id: str, key: str, first_seen_at: datetime) -> str:
    """What the tool knows the call by: the same for every attempt, redelivery and repeat of it.

    When the time for which a call answers its repeats is over, the next one is a new call with a new key.
    """
    parts = [tenant_id, key, first_seen_at.isoformat()]
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def judge(caller: Caller, wanted: Wanted) -> Operation[Judged]:
    """The decision on a call; an allowed one is reserved and queued. Raises FeatureNotAvailable, ValueError.

    Whoever else asks for this agent waits for the answer.
    """
    require(caller, Feature.TOOLS)
    hashed = args_hash(wanted.args)
    yield from agents.lock(caller.tenant_id, wanted.agent_id)
    tool = yield from tools.for_call(caller.tenant_id, wanted.agent_id, wanted.tool)
    call = _call(caller, wanted, hashed, tool)
    return (yield from until_settled(lambda: calls.judge(call)))


def judge_capped(caller: Caller, wanted: Wanted) -> Operation[Judged | Refused]:
    """`judge` for a plan that stops hard: a used-up quota refuses what would be a new call."""
    require(caller, Feature.TOOLS)
    key = call_key(wanted.agent_id, wanted.tool, args_hash(wanted.args))
    yield from agents.lock(caller.tenant_id, wanted.agent_id)
    used = yield from usage.lock_cap(caller.tenant_id, Kind.AI)
    if used >= LIMITS[caller.plan].ai_per_month and (
        yield from runs.would_acquire(caller.tenant_id, key, None)
    ):
        return (yield from counted_blocked(caller, Kind.AI, used, key))
    judged = yield from judge(caller, wanted)
    if judged.code is Code.OK:
        yield from usage.raise_cap(caller.tenant_id, Kind.AI)
    return judged


def _call(caller: Caller, wanted: Wanted, hashed: str, tool: Tool | None) -> Call:
    key = call_key(wanted.agent_id, wanted.tool, hashed)
    run_id = wanted.args.get("run_id")
    return Call(
        tenant_id=caller.tenant_id,
        actor=caller.key_id,
        agent_id=wanted.agent_id,
        tool=wanted.tool,
        key=key,
        run_id=run_id if isinstance(run_id, str) and run_id.strip() and len(run_id) <= MAX_RUN_ID else key,
        args_hash=hashed,
        metadata={
            "agent_id": wanted.agent_id,
            "tool": wanted.tool,
            "args": wanted.args,
            "spend_usd": wanted.spend_usd,
            "run_id": run_id,
        },
        spend_micro_usd=micro_usd(wanted.spend_usd),
        registered=tool is not None,
        enabled=tool is not None and tool.enabled,
        effect=(tool.effect if tool is not None else Effect.IRREVERSIBLE).value,
        risk_level=risk_level(wanted.tool),
        lease_id=new_lease_id(),
        time_limit_s=_time_limit_s(tool),
        dedup_s=LIMITS[caller.plan].effective_ttl_s(None if tool is None else tool.dedup_ttl_s),
        job=JOB,
        queue=wanted.queue,
        max_attempts=MAX_ATTEMPTS,
        publish_grace_s=wanted.publish_grace_s,
    )


def _time_limit_s(tool: Tool | None) -> int:
    """Longer than every attempt and pause can take: the tool's own time-outs are what ends a call."""
    if tool is None:
        return BETWEEN_ATTEMPTS_S
    attempts = tool.max_retries + 1
    return math.ceil(attempts * (tool.timeout_ms / 1000 + BETWEEN_ATTEMPTS_S))
