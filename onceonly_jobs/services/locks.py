"""check-lock."""

from __future__ import annotations

from collections.abc import Sequence

from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.domain.plans import LIMITS, Kind
from onceonly_jobs.errors import FingerprintMismatch
from onceonly_jobs.services.quota import Refused, counted_blocked
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import locks, usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.locks import Check, LockAnswer
from onceonly_jobs.store.rowset import only
from onceonly_jobs.store.statement import Operation, autocommit


@autocommit
def check(caller: Caller, request: CheckLockRequest, request_id: str | None) -> Operation[LockAnswer]:
    """Lock the key for its time, or tell that somebody did before. Raises FingerprintMismatch."""
    answer = yield from _check(caller, request, request_id)
    if isinstance(answer, Refused):
        raise answer.refusal
    return answer


@autocommit
def check_many(checks: Sequence[Check]) -> Operation[list[LockAnswer | None]]:
    """Each lock taken, or who has it. None: to be asked by itself, as `locks.check` says. No two for the same key."""
    return (yield from locks.check(checks))


def wanted(
    caller: Caller, request: CheckLockRequest, request_id: str | None, *, vouched: bool = False
) -> Check:
    """What POST /check-lock wants to lock. vouched: the caller was read a moment ago, and is to be checked with it."""
    return Check(
        tenant_id=caller.tenant_id,
        key=request.key,
        ttl_s=LIMITS[caller.plan].effective_ttl_s(request.ttl),
        metadata=request.metadata,
        fingerprint=request.fingerprint,
        request_id=request_id,
        vouched_for=caller if vouched else None,
    )


def _check(
    caller: Caller, request: CheckLockRequest, request_id: str | None
) -> Operation[LockAnswer | Refused]:
    check = wanted(caller, request, request_id)
    answer = yield from until_settled(lambda: only(locks.check([check])))
    return Refused(FingerprintMismatch(request.key)) if answer.status == "mismatch" else answer


def check_capped(
    caller: Caller, request: CheckLockRequest, request_id: str | None
) -> Operation[LockAnswer | Refused]:
    """`check` for a plan that stops hard: no lock is taken once the quota is used up."""
    used = yield from usage.lock_cap(caller.tenant_id, Kind.MAKE)
    if used >= LIMITS[caller.plan].make_per_month:
        return (yield from counted_blocked(caller, Kind.MAKE, used, request.key))
    answer = yield from _check(caller, request, request_id)
    if isinstance(answer, LockAnswer) and answer.status == "duplicate":
        yield from usage.raise_cap(caller.tenant_id, Kind.MAKE)
    return answer
