"""A governed tool call: decided here, carried out by a worker, and answered from what came of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.domain.fingerprint import canonical_json
from onceonly_jobs.domain.governance import Code, micro_usd, risk_level
from onceonly_jobs.domain.plans import LIMITS, Feature, Kind
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.domain.states import FINISHED, RunState
from onceonly_jobs.services.governance import require
from onceonly_jobs.services.quota import Refused, counted_blocked
from onceonly_jobs.services.runs import new_lease_id
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import agents, calls, jobs, runs, tools, usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Call, Judged
from onceonly_jobs.store.rowset import only
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.store.tools import Tool

JOB = "onceonly.tool_call"
"""The job that carries calls out. Its name can't be asked for by a run: a call is only made through a decision."""
FUNCTION = "onceonly.tool."
"""What the job of a Python function is named, before the tool's own name."""
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
    yield from agents.lock((caller.tenant_id, wanted.agent_id))
    call = yield from as_judged(caller, wanted)
    return (yield from until_settled(lambda: only(calls.judge([call]))))


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of a caller who was read a moment ago."""

    caller: Caller
    wanted: Wanted
    args_hash: str
    key: str


def asked(caller: Caller, wanted: Wanted) -> Asked:
    """For `judge_many`, where the plan does not stop hard. Raises FeatureNotAvailable, ValueError."""
    require(caller, Feature.TOOLS)
    hashed = args_hash(wanted.args)
    return Asked(caller, wanted, hashed, call_key(wanted.agent_id, wanted.tool, hashed))


@autocommit
def judge_many(questions: Sequence[Asked]) -> Operation[list[Judged | None]]:
    """The decision on each; None: to be asked for by itself, as `store.calls.judge` says. No two may have one key."""
    callees = yield from _callees([(each.caller.tenant_id, each.wanted) for each in questions])
    wanted = [
        _call(each.caller, each.wanted, each.args_hash, callee, each.key, vouched=True)
        for each, callee in zip(questions, callees, strict=True)
    ]
    return (yield from calls.judge(wanted))


def judge_capped(caller: Caller, wanted: Wanted) -> Operation[Judged | Refused]:
    """`judge` for a plan that stops hard: a used-up quota refuses what would be a new call."""
    require(caller, Feature.TOOLS)
    key = call_key(wanted.agent_id, wanted.tool, args_hash(wanted.args))
    yield from agents.lock((caller.tenant_id, wanted.agent_id))
    used = yield from usage.lock_cap(caller.tenant_id, Kind.AI)
    if used >= LIMITS[caller.plan].ai_per_month and (
        yield from runs.would_acquire(caller.tenant_id, key, None)
    ):
        return (yield from counted_blocked(caller, Kind.AI, used, key))
    judged = yield from judge(caller, wanted)
    if judged.code is Code.OK:
        yield from usage.raise_cap(caller.tenant_id, Kind.AI)
    return judged


def as_judged(caller: Caller, wanted: Wanted, made_in: str | None = None) -> Operation[Call]:
    """The call as the judging statement takes it, with its tool as it is registered now. Raises ValueError.

    made_in: the run_id of the run whose action it is. That timeline is the run's, not the call's.
    """
    hashed = args_hash(wanted.args)
    [callee] = yield from _callees([(caller.tenant_id, wanted)])
    call = _call(caller, wanted, hashed, callee, call_key(wanted.agent_id, wanted.tool, hashed))
    if made_in is None:
        return call
    metadata = {**call.metadata, "run_id": call.metadata["run_id"] or made_in}
    return replace(call, metadata=metadata, run_id=call.key if call.run_id == made_in else call.run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    """What a tool's name stands for: a registered HTTP tool, or else a Python function of the workers."""

    enabled: bool
    effect: Effect
    job: str
    queue: str
    max_attempts: int
    time_limit_s: int
    dedup_ttl_s: int | None = None
    """How long its calls answer their repeats; None: as the plan has it."""


def _callees(asked: Sequence[tuple[str, Wanted]]) -> Operation[list[Callee | None]]:
    """Of each the agent's own tool of that name, or the tenant's, or a function of the workers'; None: there is none.

    asked: tenant and call.
    """
    found = yield from tools.for_calls([(tenant, wanted.agent_id, wanted.tool) for tenant, wanted in asked])
    names = {FUNCTION + wanted.tool for (_, wanted), tool in zip(asked, found, strict=True) if tool is None}
    specs = {spec.name: spec for spec in (yield from jobs.find(sorted(names)))} if names else {}
    return [
        _function(specs.get(FUNCTION + wanted.tool)) if tool is None else _tool(tool, wanted)
        for (_, wanted), tool in zip(asked, found, strict=True)
    ]


def _tool(tool: Tool, wanted: Wanted) -> Callee:
    return Callee(
        enabled=tool.enabled,
        effect=tool.effect,
        job=JOB,
        queue=wanted.queue,
        max_attempts=MAX_ATTEMPTS,
        time_limit_s=_time_limit_s(tool),
        dedup_ttl_s=tool.dedup_ttl_s,
    )


def _function(spec: JobSpec | None) -> Callee | None:
    if spec is None or spec.effect is None or spec.time_limit_s is None:
        return None
    return Callee(
        enabled=True,
        effect=Effect(spec.effect),
        job=spec.name,
        queue=spec.queue,
        max_attempts=spec.max_attempts,
        time_limit_s=spec.time_limit_s,
    )


def _call(
    caller: Caller, wanted: Wanted, hashed: str, callee: Callee | None, key: str, *, vouched: bool = False
) -> Call:
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
        registered=callee is not None,
        enabled=callee is not None and callee.enabled,
        effect=(callee.effect if callee else Effect.IRREVERSIBLE).value,
        risk_level=risk_level(wanted.tool),
        lease_id=new_lease_id(),
        time_limit_s=callee.time_limit_s if callee else BETWEEN_ATTEMPTS_S,
        dedup_s=LIMITS[caller.plan].effective_ttl_s(callee.dedup_ttl_s if callee else None),
        job=callee.job if callee else JOB,
        queue=callee.queue if callee else wanted.queue,
        max_attempts=callee.max_attempts if callee else MAX_ATTEMPTS,
        publish_grace_s=wanted.publish_grace_s,
        vouched_for=caller if vouched else None,
    )


class Ended(Protocol):
    """A run, or what is known of one."""

    @property
    def state(self) -> RunState: ...
    @property
    def result(self) -> dict[str, Any] | None: ...
    @property
    def error_code(self) -> str | None: ...
    @property
    def error_message(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a call has come to, for whoever asked for it."""

    code: Code
    ok: bool
    allowed: bool
    decision: str
    result: dict[str, Any] | None
    message: str | None = None


def refusal(code: Code) -> Answer:
    """The answer to a call that was not allowed."""
    return Answer(code=code, ok=False, allowed=False, decision="blocked", result=None)


def answer_of(code: Code, run: Ended) -> Answer | None:
    """What the run that carries an allowed call out has to say; None while it goes on."""
    decision = "dedup" if code is Code.IDEMPOTENCY else "executed"
    if run.state is RunState.COMPLETED:
        return Answer(code=code, ok=True, allowed=True, decision=decision, result=run.result)
    if run.state is RunState.FAILED and run.error_code == "policy_blocked":
        return refusal(Code(run.error_message or Code.AGENT_DISABLED))
    failed = Answer(
        code=Code.TOOL_ERROR,
        ok=False,
        allowed=True,
        decision=decision,
        result=run.result,
        message=run.error_message,
    )
    if run.state is RunState.UNKNOWN:
        return replace(failed, code=Code.OUTCOME_UNKNOWN)
    if run.state not in FINISHED:
        return None
    made_up = {"error": run.error_code, "status": None, "message": run.error_code}
    return replace(failed, result=run.result or made_up)


def _time_limit_s(tool: Tool) -> int:
    """Longer than every attempt and pause can take: the tool's own time-outs are what ends a call."""
    attempts = tool.max_retries + 1
    return math.ceil(attempts * (tool.timeout_ms / 1000 + BETWEEN_ATTEMPTS_S))
