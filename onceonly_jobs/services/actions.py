"""The actions of a run: each is decided on once, in its place, whoever carries the run on."""

from __future__ import annotations

from collections.abc import Callable

from onceonly_jobs.domain.governance import REASONS, Code
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import calls
from onceonly_jobs.services.calls import Answer, Wanted, as_judged
from onceonly_jobs.services.settling import until_settled
from onceonly_jobs.store import actions as store
from onceonly_jobs.store import agents, claims
from onceonly_jobs.store import calls as call_store
from onceonly_jobs.store.actions import Acted, Before, Decided
from onceonly_jobs.store.calls import Call
from onceonly_jobs.store.rowset import only
from onceonly_jobs.store.statement import Operation, autocommit


@autocommit
def decided(claim: Claim) -> Operation[list[Acted]]:
    """The run's actions that were decided on, in this attempt or an earlier one, in their order."""
    return (yield from store.decided(claim))


def decide(claim: Claim, wanted: Wanted, position: int) -> Operation[Acted | None]:
    """Decide on an action like on any call, or find the decision that was made before.

    None when the claim is not current: then nothing was decided.
    """

    def judge(call: Call) -> Operation[Decided]:
        judged = yield from until_settled(lambda: only(call_store.judge([call], metered=False)))
        return Decided.of(judged)

    return (yield from _once(claim, wanted, position, judge))


def foresee(
    claim: Claim, wanted: Wanted, position: int, before: list[tuple[str, Acted]]
) -> Operation[Acted | None]:
    """`decide`, for a dry run: nothing is reserved or called. before: the run's earlier actions, with their tools."""

    def judge(call: Call) -> Operation[Decided]:
        return (yield from store.foresee(call, _used_up(call, before)))

    return (yield from _once(claim, wanted, position, judge))


def _once(
    claim: Claim, wanted: Wanted, position: int, judge: Callable[[Call], Operation[Decided]]
) -> Operation[Acted | None]:
    """The agent's row is locked before the run's, in the order of the kill switch. Whoever takes the run over waits
    for the second lock, and then finds what was decided under the first claim."""
    yield from agents.lock((claim.tenant_id, wanted.agent_id))
    if not (yield from claims.hold_claim(claim)):
        return None
    known = yield from store.find(claim, position)
    if known is not None:
        return known
    caller = yield from store.asker(claim)
    call = yield from as_judged(caller, wanted, made_in=claim.run_id)
    yield from store.decide(claim, position, call, (yield from judge(call)))
    return (yield from store.find(claim, position))


def _used_up(call: Call, before: list[tuple[str, Acted]]) -> Before:
    made = [(tool, acted) for tool, acted in before if acted.code is Code.OK]
    return Before(
        actions=len(made),
        calls=sum(tool == call.tool for tool, _ in made),
        spend_micro_usd=sum(acted.cost_micro_usd for _, acted in made),
        repeated=any(acted.call_key == call.key for _, acted in made),
    )


@autocommit
def answer(action: Acted) -> Operation[Answer | str]:
    """What the call of an action has come to; while it goes on, the job that carries it out."""
    standing = yield from store.standing(action)
    return calls.answer_of(action.code, standing) or standing.job


def answer_then(action: Acted) -> Answer:
    """What an action came to, as it was noted when it ended."""
    outcome = action.outcome or action.code
    allowed = outcome in (Code.OK, Code.IDEMPOTENCY, Code.TOOL_ERROR, Code.OUTCOME_UNKNOWN)
    if not allowed:
        return calls.refusal(outcome)
    return Answer(
        code=outcome,
        ok=outcome in (Code.OK, Code.IDEMPOTENCY),
        allowed=True,
        decision="dedup" if action.code is Code.IDEMPOTENCY else "executed",
        result=action.result,
        message=action.message,
    )


def finish(claim: Claim, position: int, tool: str, ended: Answer) -> Operation[Acted | None]:
    """Note how an action ended, once, and tell the run's timeline. None when the claim is not current."""
    if not (yield from claims.hold_claim(claim)):
        return None
    status = "ok" if ended.ok else "error" if ended.allowed else "blocked"
    reason = None if ended.code is Code.OK else ended.message or REASONS[ended.code]
    yield from store.finish(
        claim, position, tool, ended.code, status=status, message=reason, result=ended.result
    )
    return (yield from store.find(claim, position))
