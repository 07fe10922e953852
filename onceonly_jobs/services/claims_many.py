"""How a worker takes and ends several runs at once. Each stands for itself: one that is refused stops no other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from onceonly_jobs.domain.fingerprint import result_hash
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services.claims import Ending, actual_micro_usd, complete_as
from onceonly_jobs.store import claims_many as store
from onceonly_jobs.store.claims import Holder
from onceonly_jobs.store.claims_many import Completion as Completion
from onceonly_jobs.store.claims_many import Progress as Progress
from onceonly_jobs.store.planning import by_ordered_index
from onceonly_jobs.store.statement import Operation, autocommit


def completion(claim: Claim, result: dict[str, Any], cost_usd: float | None = None) -> Completion:
    """A result as it is stored; what the run really cost is cost_usd, or the result's own field of that name."""
    actual = actual_micro_usd(result.get("cost_usd") if cost_usd is None else cost_usd)
    return Completion(claim, result, result_hash(result), actual)


def claim_due(
    count: int,
    queue: str,
    jobs: Collection[str],
    lease_id: str,
    lease_s: float,
    holder: Holder,
    *,
    repeated: bool = False,
) -> Operation[list[Claim]]:
    """Claim up to `count` due runs of a queue under a new lease id, to be started in the order given.

    repeated: an earlier call with this lease id got no answer, and may have claimed some.
    """
    found: list[Claim] = []
    if repeated:
        found = yield from store.claimed(lease_id)
    if not found:
        yield from by_ordered_index()
        found = yield from store.claim_due(count, queue, jobs, lease_id, lease_s, holder)
    return found


@autocommit
def keep(claims: Sequence[Claim], lease_s: float) -> Operation[set[int]]:
    """Keep claims; the ids of those that could be."""
    return (yield from store.keep(claims, lease_s))


@autocommit
def complete_many(completions: Sequence[Completion], retention_s: int) -> Operation[list[Ending]]:
    """Store results, each under its current claim. How each of them ended, in the order given.

    A repeat after a lost answer finds stored what was stored.
    """
    stored = yield from store.complete(completions, retention_s)
    endings = []
    for each in completions:
        if each.claim.id in stored:
            endings.append(Ending.STORED)
        else:
            alone = complete_as(each.claim, each.result, each.result_hash, retention_s, each.actual_micro_usd)
            endings.append((yield from alone))
    return endings


@autocommit
def give_back(claims: Sequence[Claim]) -> Operation[set[int]]:
    """Let others have runs that were not begun; they count as never claimed."""
    return (yield from store.give_back(claims))


@autocommit
def spare(worker_id: str, pid: int, run: int, progress: Progress) -> Operation[set[int]]:
    """Let others have what a dead process held, but for what it was at work on and the run of its message."""
    return (yield from store.spare(worker_id, pid, run, progress))
