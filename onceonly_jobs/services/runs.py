"""Taking a key: for the caller's own work (lease), or as a job for a worker (submit)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from onceonly_jobs.contracts.leases import LeaseRequest
from onceonly_jobs.domain.actions import MOST_ACTIONS, has_actions
from onceonly_jobs.domain.governance import micro_usd, risk_level
from onceonly_jobs.domain.plans import LIMITS, Feature, Kind
from onceonly_jobs.domain.runs import JobSpec, Run
from onceonly_jobs.domain.states import Owner
from onceonly_jobs.errors import FingerprintMismatch, NotFound, UnknownTask
from onceonly_jobs.services.governance import require
from onceonly_jobs.services.quota import Refused, counted_blocked, is_beyond, tell_beyond
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import agents, jobs, runs, usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.rowset import only
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.store.statement import Operation, autocommit, read_only

INTERNAL = "onceonly."
"""Jobs of such names are not for runs to ask for."""
ACTIONS = "onceonly.actions"
"""The job that makes the tool calls of `metadata.actions`."""
ACTION_ATTEMPTS = MOST_ACTIONS
"""How often such a run may be started: if each attempt finishes one action before it is lost, all are done."""


def new_lease_id() -> str:
    """144 random bits: nobody else has it, and nobody can guess it."""
    return f"lease_{secrets.token_urlsafe(18)}"


def lease_taking(caller: Caller, request: LeaseRequest) -> Taking:
    """What POST /ai/lease wants to put under its key."""
    metadata = request.metadata or {}
    return Taking(
        tenant_id=caller.tenant_id,
        key=request.key,
        owner=Owner.CALLER,
        lease_id=new_lease_id(),
        ttl_s=LIMITS[caller.plan].effective_ttl_s(request.ttl),
        run_id=_text(metadata, "run_id") or request.key,
        agent_id=_text(metadata, "agent_id"),
        metadata=request.metadata,
        fingerprint=request.fingerprint,
        actor=caller.key_id,
    )


def job_taking(
    caller: Caller,
    job: JobSpec,
    *,
    key: str,
    ttl_s: int | None,
    metadata: dict[str, Any] | None,
    fingerprint: str | None = None,
    queue: str | None = None,
    delay_s: float = 0,
    publish_grace_s: float = 0,
    retention_s: int = 604_800,
    vouched: bool = False,
) -> Taking:
    """What POST /ai/run and Jobs.enqueue want to put under their key.

    vouched: the caller was read a moment ago, and is checked again with the taking.

    Raises UnknownTask for an internal job, unless it is the one of actions and there are some; then
    FeatureNotAvailable where the plan has no tools.
    """
    acting = job.name == ACTIONS and has_actions(metadata)
    if acting:
        require(caller, Feature.TOOLS)
    elif job.name.startswith(INTERNAL):
        raise UnknownTask(job.name, [])
    return Taking(
        acting=acting,
        tenant_id=caller.tenant_id,
        key=key,
        owner=Owner.SERVER,
        lease_id=new_lease_id(),
        ttl_s=LIMITS[caller.plan].effective_ttl_s(ttl_s),
        run_id=_text(metadata or {}, "run_id") or key,
        agent_id=_text(metadata or {}, "agent_id"),
        metadata=metadata,
        fingerprint=fingerprint,
        actor=caller.key_id,
        job=job.name,
        risk_level=risk_level(job.name),
        spend_micro_usd=0 if acting else micro_usd((metadata or {}).get("spend_usd") or 0),
        queue=queue or job.queue,
        max_attempts=job.max_attempts,
        max_crashes=job.max_crashes,
        delay_s=delay_s,
        publish_grace_s=publish_grace_s,
        retention_s=retention_s,
        vouched_for=caller if vouched else None,
    )


def _text(metadata: dict[str, Any], field: str) -> str | None:
    value = metadata.get(field)
    return value if isinstance(value, str) else None


def actions_job(queue: str) -> JobSpec:
    """The job of a run with `metadata.actions`."""
    return JobSpec(name=ACTIONS, queue=queue, max_attempts=ACTION_ATTEMPTS, max_crashes=ACTION_ATTEMPTS)


def by_name(known: Iterable[JobSpec]) -> dict[str, JobSpec]:
    """The jobs that runs may ask for."""
    return {spec.name: spec for spec in known if not spec.name.startswith(INTERNAL)}


def pick_job(
    known: Mapping[str, JobSpec], task: str | None, key: str, default_job: str, default_queue: str
) -> JobSpec:
    """The job of a run: by name, else by the longest matching key pattern, else the default.

    Raises UnknownTask when a name is given that no worker has registered. The default needs no worker yet:
    its runs wait for one.
    """
    if task is not None:
        if task not in known:
            raise UnknownTask(task, sorted(known))
        return known[task]
    matching = [spec for spec in known.values() if spec.match and fnmatchcase(key, spec.match)]
    if matching:
        return max(matching, key=lambda spec: (len(spec.match or ""), spec.name))
    return known.get(default_job) or JobSpec(name=default_job, queue=default_queue)


@autocommit
def take(caller: Caller, taking: Taking) -> Operation[Taken]:
    """Take the key if it is free, or see who has it. Raises FingerprintMismatch."""
    taken = yield from _take(caller, taking)
    if isinstance(taken, Refused):
        raise taken.refusal
    return taken


def _take(caller: Caller, taking: Taking) -> Operation[Taken | Refused]:
    taken = yield from until_settled(lambda: only(runs.take([taking])))
    if taken.outcome == "mismatch":
        return Refused(FingerprintMismatch(taking.key))
    if taken.outcome == "acquired" and is_beyond(caller, Kind.AI, taken.usage):
        yield from tell_beyond(caller, Kind.AI)
    return taken


def take_capped(caller: Caller, taking: Taking) -> Operation[Taken | Refused]:
    """`take` for a plan that stops hard: attaching to a held or finished key stays free."""
    used = yield from usage.lock_cap(caller.tenant_id, Kind.AI)
    if used >= LIMITS[caller.plan].ai_per_month:
        free = yield from runs.would_acquire(caller.tenant_id, taking.key, taking.fingerprint)
        if free:
            return (yield from counted_blocked(caller, Kind.AI, used, taking.key))
    taken = yield from _take(caller, taking)
    if isinstance(taken, Taken) and taken.outcome == "acquired":
        yield from usage.raise_cap(caller.tenant_id, Kind.AI)
    return taken


def take_governed(caller: Caller, taking: Taking) -> Operation[Taken | Refused]:
    """`take` or `take_capped`, judged by the agent's policy. Whoever else asks for this agent waits for the answer."""
    yield from agents.lock((taking.tenant_id, taking.agent_id or ""))
    if LIMITS[caller.plan].hard_stop:
        return (yield from take_capped(caller, taking))
    return (yield from _take(caller, taking))


def taking_operation(
    caller: Caller, taking: Taking
) -> Callable[[Caller, Taking], Operation[Taken | Refused]]:
    """The one of `take`, `take_capped` and `take_governed` that the plan and the run ask for."""
    if taking.governed:
        return take_governed
    return take_capped if LIMITS[caller.plan].hard_stop else take


@autocommit
def take_many(takings: Sequence[Taking]) -> Operation[list[Taken | None]]:
    """Each key taken, or who has it. None: to be asked for by itself, as `runs.take` says.

    Policies judge all of them, or none. No two may be for the same key, and no plan stop hard. Mismatches are answers
    here, and quotas not told of.
    """
    return (yield from runs.take(takings))


@read_only
def find(tenant_id: str, key: str) -> Operation[Run]:
    """The run or lease under a key. Raises NotFound."""
    run = yield from runs.find(tenant_id, key)
    if run is None:
        raise NotFound(key)
    return run


@read_only
def find_by_id(tenant_id: str, run: int) -> Operation[Run | None]:
    """A run by its row, whether or not its key still answers for it; None once it was deleted."""
    return (yield from runs.find_by_id(tenant_id, run))


@read_only
def registered_jobs() -> Operation[list[JobSpec]]:
    """Every job that a worker has announced."""
    return (yield from jobs.registered())
