"""Monthly quotas of plans that stop hard."""

from __future__ import annotations

from dataclasses import dataclass

from onceonly_jobs.domain.plans import LIMITS, Kind
from onceonly_jobs.errors import PlanLimitReached, Refusal
from onceonly_jobs.store import usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.statement import Operation


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal as a value, so that what was counted is committed."""

    refusal: Refusal


def counted_blocked(caller: Caller, kind: Kind, used: int, key: str) -> Operation[Refused]:
    """Count the refused request and say why it was refused."""
    yield from usage.count_blocked(caller.tenant_id, kind, key)
    limit = LIMITS[caller.plan].quota(kind)
    return Refused(PlanLimitReached(caller.plan.value, kind.value, limit, used))
