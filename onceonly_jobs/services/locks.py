"""check-lock."""

from __future__ import annotations

from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.domain.plans import LIMITS, Kind
from onceonly_jobs.errors import FingerprintMismatch
from onceonly_jobs.services.quota import Refused, counted_blocked
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import locks, usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.locks import LockAnswer
from onceonly_jobs.store.statement import Operation, autocommit


@autocommit
def check(caller: Caller, request: CheckLockRequest, request_id: str | None) -> Operation[LockAnswer]:
    """Lock the key for its time, or tell that somebody did before. Raises FingerprintMismatch."""
    answer = yield from _check(caller, request, request_id)
    if isinstance(answer, Refused):
        raise answer.refusal
    return answer


def _check(
    caller: Caller, request: CheckLockRequest, request_id: str | None
) -> Operation[LockAnswer | Refused]:
    ttl_s = LIMITS[caller.plan].effective_ttl_s(request.ttl)
    answer = yield from until_settled(
        lambda: locks.check(
            caller.tenant_id, request.key, ttl_s, request.metadata, request.fingerprint, request_id
        )
    )
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
