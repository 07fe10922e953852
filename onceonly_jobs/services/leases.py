"""What the holder of a lease asks for: extend, complete, fail, cancel. Each may be repeated safely."""

from __future__ import annotations

from onceonly_jobs.contracts.leases import CancelRequest, CompleteRequest, ExtendRequest, FailRequest
from onceonly_jobs.domain.plans import LIMITS
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.domain.states import Owner, RunState
from onceonly_jobs.errors import ConflictReason, LeaseConflict, NotFound
from onceonly_jobs.services.claims import RETENTION_S
from onceonly_jobs.store import leases, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.statement import Operation, autocommit

WIRE_STATES = {
    RunState.QUEUED: "in_progress",
    RunState.IN_PROGRESS: "in_progress",
    RunState.COMPLETED: "completed",
    RunState.FAILED: "failed",
    RunState.CANCELLED: "failed",
    RunState.UNKNOWN: "in_progress",
}


@autocommit
def extend(caller: Caller, request: ExtendRequest, retention_s: int = RETENTION_S) -> Operation[Run]:
    """Move the deadline to now + ttl. Raises NotFound, LeaseConflict.

    A run that its agent may not go on with ends instead, for retention_s seconds, and that is the conflict.
    """
    ttl_s = None if request.ttl is None else LIMITS[caller.plan].effective_ttl_s(request.ttl)
    run = yield from leases.extend(caller.tenant_id, request.key, request.lease_id, ttl_s)
    if run is None:
        run = yield from leases.extend_governed(
            caller.tenant_id, request.key, request.lease_id, ttl_s, retention_s
        )
    if run is not None:
        return run
    return (yield from _conflict(caller, request.key, request.lease_id))


@autocommit
def complete(caller: Caller, request: CompleteRequest, retention_s: int) -> Operation[Run]:
    """Store the result of a lease that the caller still holds. Raises NotFound, LeaseConflict."""
    run = yield from leases.complete(
        caller.tenant_id, request.key, request.lease_id, request.result, request.result_hash, retention_s
    )
    if run is not None:
        return run
    return (yield from _repeated(caller, request.key, request.lease_id, RunState.COMPLETED))


@autocommit
def fail(caller: Caller, request: FailRequest, retention_s: int) -> Operation[Run]:
    """End a lease that the caller still holds as failed. Raises NotFound, LeaseConflict."""
    run = yield from leases.fail(
        caller.tenant_id, request.key, request.lease_id, request.error_code, request.error_hash, retention_s
    )
    if run is not None:
        return run
    return (yield from _repeated(caller, request.key, request.lease_id, RunState.FAILED))


@autocommit
def cancel(caller: Caller, request: CancelRequest, retention_s: int) -> Operation[Run]:
    """Give a lease, or a run the caller asked for, up without an outcome. Raises NotFound, LeaseConflict."""
    run = yield from leases.cancel(
        caller.tenant_id, request.key, request.lease_id, request.reason, retention_s
    )
    if run is not None:
        return run
    run = yield from runs.find(caller.tenant_id, request.key)
    if run is not None and run.state is RunState.CANCELLED and run.lease_id == request.lease_id:
        return run
    return (yield from _conflict(caller, request.key, request.lease_id))


def _repeated(caller: Caller, key: str, lease_id: str, outcome: RunState) -> Operation[Run]:
    """The stored state for a replay by the same lease; everybody else gets the conflict."""
    run = yield from runs.find(caller.tenant_id, key)
    own = run is not None and run.owner is Owner.CALLER and run.lease_id == lease_id
    if run is not None and own and run.state is outcome:
        return run
    if run is not None and run.owner is Owner.SERVER:
        # The requester's handle is no right to an outcome: that is the worker's alone.
        raise LeaseConflict("not_owner", key, WIRE_STATES[run.state], run.version)
    return (yield from _conflict(caller, key, lease_id))


def _conflict(caller: Caller, key: str, lease_id: str) -> Operation[Run]:
    run = yield from runs.find(caller.tenant_id, key)
    if run is None:
        raise NotFound(key)
    reason: ConflictReason = "finished" if run.finished and run.lease_id == lease_id else "not_owner"
    raise LeaseConflict(reason, key, WIRE_STATES[run.state], run.version)
