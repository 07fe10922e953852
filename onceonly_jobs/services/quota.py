"""Monthly quotas of plans that stop hard."""

from __future__ import annotations

from dataclasses import dataclass

from onceonly_jobs.domain.plans import LIMITS, Kind
from onceonly_jobs.errors import PlanLimitReached, Refusal
from onceonly_jobs.store import usage, webhooks
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.statement import Operation, autocommit


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal as a value, so that what was counted is committed."""

    refusal: Refusal


def counted_blocked(caller: Caller, kind: Kind, used: int, key: str) -> Operation[Refused]:
    """Count the refused request and say why it was refused."""
    yield from usage.count_blocked(caller.tenant_id, kind, key)
    limit = LIMITS[caller.plan].quota(kind)
    yield from webhooks.quota_reached(caller.tenant_id, kind, limit)
    return Refused(PlanLimitReached(caller.plan.value, kind.value, limit, used))


TOLD_FOR = 1000
"""How many calls beyond the quota look whether that was told: concurrent ones may all miss the first."""


def is_beyond(caller: Caller, kind: Kind, used: int) -> bool:
    """Whether it has to be told that the quota is used up, on a plan that goes on all the same."""
    limit = LIMITS[caller.plan].quota(kind)
    return limit < used <= limit + TOLD_FOR


@autocommit
def tell_beyond(caller: Caller, kind: Kind) -> Operation[None]:
    """Tell that the quota is used up, once a month."""
    yield from webhooks.quota_reached(caller.tenant_id, kind, LIMITS[caller.plan].quota(kind))
