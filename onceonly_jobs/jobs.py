"""Enqueueing from Python without HTTP, in a transaction of its own or in the caller's."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.enqueue import EnqueueRequest
from onceonly_jobs.dispatch.direct import DirectPublisher
from onceonly_jobs.domain.actions import has_actions
from onceonly_jobs.domain.plans import Plan, PlanTable
from onceonly_jobs.domain.runs import JobSpec, Run
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import EnqueueError, UnknownTask
from onceonly_jobs.services import account, runs
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, aon, on
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.store.statement import Operation, autocommit

KNOWN_FOR_S = 2.0
"""How long the tenant's plan and the registered jobs are remembered."""
OWN_KEY = "app"
"""Who enqueued, in the audit trail, where no API key says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """What became of an enqueue call: `acquired` for the first with its key, the run's state for any later."""

    key: str
    status: Literal["acquired", "polling", "completed", "failed"]
    run_id: str
    lease_id: str | None
    """Handle for cancelling the run; only the call that acquired it gets one."""
    charged: bool
    result: dict[str, Any] | None
    error_code: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    jobs: list[JobSpec]
    read_at: float

    def serves(self, job: str) -> bool:
        fresh = time.monotonic() - self.read_at < KNOWN_FOR_S
        return fresh and any(spec.name == job for spec in self.jobs)


class Jobs:
    """Enqueues runs for one tenant. Safe to share between threads; connects per process, on first use."""

    def __init__(
        self, settings: Settings, *, tenant: str = "default", api_key: str | None = None, pool_size: int = 5
    ) -> None:
        """With an api_key, its tenant is used; else `tenant`, which is made when it is new."""
        self._settings = settings
        self._tenant = tenant
        self._api_key = api_key
        self._database = Database(settings.require_database_url(), pool_size=pool_size)
        self._direct = None if settings.broker_url is None else DirectPublisher(settings)
        self._known: _Known | None = None

    @classmethod
    def from_env(cls) -> Jobs:
        """By ONCEONLY_DATABASE_URL and ONCEONLY_BROKER_URL, for the tenant of ONCEONLY_API_KEY, else of
        ONCEONLY_TENANT, else `default`. Without a broker URL every publication is left to the relay."""
        return cls(
            Settings.load(),
            tenant=os.environ.get("ONCEONLY_TENANT") or "default",
            api_key=os.environ.get("ONCEONLY_API_KEY") or None,
        )

    def enqueue(
        self,
        job: str,
        *,
        key: str,
        payload: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        delay: float | timedelta = 0,
        queue: str | None = None,
        ttl: int | None = None,
        fingerprint: str | None = None,
        connection: sa.Connection | None = None,
    ) -> Enqueued:
        """Ask for a run of this job under a key: the first call acquires it, later ones see how it stands.

        payload: what the handler gets as `ctx.payload`; it travels in the metadata.
        delay: seconds, or a timedelta, until it may start. ttl: its time limit in seconds.
        connection: one to the same database, in the caller's transaction. The run exists exactly when that
        transaction commits; the relay then publishes it.
        Raises EnqueueError, UnknownTask, FingerprintMismatch, PlanLimitReached, FeatureNotAvailable.
        """
        request = EnqueueRequest.of(
            job,
            key,
            payload=payload,
            metadata=metadata,
            delay=delay,
            queue=queue,
            ttl=ttl,
            fingerprint=fingerprint,
        )
        if connection is not None:
            _must_be(connection, sa.Connection, "enqueue")
            known = self._remembered(job)
            if known is None:
                known = on(connection, self._look_up())
            taking = _taking(known, request, publish_grace_s=0)
            take = runs.taking_operation(known.caller, taking)
            return _answer(on(connection, take(known.caller, taking)))
        known = self._remembered(job)
        if known is None:
            known = self._database.run(self._look_up)
        taking = self._with_grace(_taking(known, request, self._settings.publish_grace_s))
        taken = self._database.run(runs.taking_operation(known.caller, taking), known.caller, taking)
        answer = _answer(taken)
        due = _due_now(taking, taken)
        if due is not None and self._direct is not None:
            self._direct.offer(due)
        return answer

    async def enqueue_async(
        self,
        job: str,
        *,
        key: str,
        payload: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        delay: float | timedelta = 0,
        queue: str | None = None,
        ttl: int | None = None,
        fingerprint: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> Enqueued:
        """`enqueue`, without blocking the event loop."""
        request = EnqueueRequest.of(
            job,
            key,
            payload=payload,
            metadata=metadata,
            delay=delay,
            queue=queue,
            ttl=ttl,
            fingerprint=fingerprint,
        )
        if connection is not None:
            _must_be(connection, AsyncConnection, "enqueue_async")
            known = self._remembered(job)
            if known is None:
                known = await aon(connection, self._look_up())
            taking = _taking(known, request, publish_grace_s=0)
            take = runs.taking_operation(known.caller, taking)
            return _answer(await aon(connection, take(known.caller, taking)))
        known = self._remembered(job)
        if known is None:
            known = await self._database.arun(self._look_up)
        taking = self._with_grace(_taking(known, request, self._settings.publish_grace_s))
        taken = await self._database.arun(runs.taking_operation(known.caller, taking), known.caller, taking)
        answer = _answer(taken)
        due = _due_now(taking, taken)
        if due is not None and self._direct is not None:
            await asyncio.to_thread(self._direct.offer, due)
        return answer

    def _with_grace(self, taking: Taking) -> Taking:
        """What is not likely to be published here need not wait for that."""
        if self._direct is None or self._direct.full(taking.queue or ""):
            return replace(taking, publish_grace_s=0)
        return taking

    def status(self, key: str) -> Enqueued:
        """How the run under a key stands, with its result when it is completed. Raises NotFound."""
        known = self._known
        if known is None:
            known = self._database.run(self._look_up)
        return _standing(self._database.run(runs.find, known.caller.tenant_id, key))

    async def status_async(self, key: str) -> Enqueued:
        """`status`, without blocking the event loop."""
        known = self._known
        if known is None:
            known = await self._database.arun(self._look_up)
        return _standing(await self._database.arun(runs.find, known.caller.tenant_id, key))

    def close(self) -> None:
        """Close its connections. It may be used again."""
        if self._direct is not None:
            self._direct.close()
        self._database.close()

    async def aclose(self) -> None:
        """`close`, for one that was used with `enqueue_async`."""
        await self._database.aclose()
        self.close()

    def _remembered(self, job: str) -> _Known | None:
        return self._known if self._known is not None and self._known.serves(job) else None

    @autocommit
    def _look_up(self) -> Operation[_Known]:
        """The tenant's plan and the registered jobs, read and remembered."""
        if self._api_key is not None:
            caller = yield from account.authenticate(self._api_key)
            caller = replace(caller, plan_table=PlanTable(self._settings.plan_table))
        else:
            caller = yield from self._own_caller()
        specs = yield from runs.registered_jobs()
        self._known = _Known(caller, specs, time.monotonic())
        return self._known

    def _own_caller(self) -> Operation[Caller]:
        tenant = yield from account.find_tenant(self._tenant)
        if tenant is None:
            tenant = yield from account.ensure_tenant(self._tenant, Plan(self._settings.default_plan))
        if tenant.disabled_at is not None:
            raise EnqueueError(f"tenant {self._tenant!r} is disabled")
        return Caller(
            tenant_id=tenant.id,
            plan=tenant.plan,
            key_id=OWN_KEY,
            key_preview="",
            rate_limit=None,
            disabled=False,
            plan_table=PlanTable(self._settings.plan_table),
        )


def _must_be(connection: object, kind: type, method: str) -> None:
    if not isinstance(connection, kind):
        raise EnqueueError(
            f"connection: {method} takes a {kind.__name__} (of a Session: session.connection()), "
            f"not {type(connection).__name__}"
        )


def _taking(known: _Known, request: EnqueueRequest, publish_grace_s: float) -> Taking:
    """Raises UnknownTask, EnqueueError, FeatureNotAvailable."""
    if has_actions(request.metadata) != (request.job == runs.ACTIONS):
        raise EnqueueError(f"metadata.actions are for the job {runs.ACTIONS!r}, which makes nothing else")
    spec = next((spec for spec in known.jobs if spec.name == request.job), None)
    if spec is None:
        raise UnknownTask(request.job, sorted(spec.name for spec in known.jobs))
    return runs.job_taking(
        known.caller,
        spec,
        key=request.key,
        ttl_s=request.ttl_s,
        metadata=request.metadata,
        fingerprint=request.fingerprint,
        queue=request.queue,
        delay_s=request.delay_s,
        publish_grace_s=0 if request.delay_s else publish_grace_s,
    )


def _due_now(taking: Taking, taken: Taken | Refused) -> Due | None:
    """The run to publish at once, if there is one."""
    if isinstance(taken, Refused) or taken.outcome != "acquired" or taking.delay_s > 0:
        return None
    return Due(
        id=taken.run.id,
        tenant_id=taking.tenant_id,
        key=taking.key,
        agent_id=taking.agent_id,
        job=taking.job or "",
        queue=taking.queue or "",
        due_at=taken.run.read_at,
    )


def _answer(taken: Taken | Refused) -> Enqueued:
    """Raises FingerprintMismatch, PlanLimitReached, after the refusal was counted."""
    if isinstance(taken, Refused):
        raise taken.refusal
    return _standing(taken.run, acquired=taken.outcome == "acquired")


_STATUS: dict[RunState, Literal["completed", "failed"]] = {
    RunState.COMPLETED: "completed",
    RunState.FAILED: "failed",
}


def _standing(run: Run, *, acquired: bool = False) -> Enqueued:
    return Enqueued(
        key=run.key,
        status="acquired" if acquired else _STATUS.get(run.state, "polling"),
        run_id=run.run_id,
        lease_id=run.lease_id if acquired else None,
        charged=acquired,
        result=run.result,
        error_code=run.error_code,
    )
