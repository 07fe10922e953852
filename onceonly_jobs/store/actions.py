"""The actions of a run: what was decided on each, once, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.governance import REASONS, Code
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import ASKED, Call, Judged, as_asked, called, held
from onceonly_jobs.store.events import recording
from onceonly_jobs.store.governance import AGENTS, REASON
from onceonly_jobs.store.statement import Statement, many, nothing, one_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A decision on an action."""

    code: Code
    decision_id: int
    cost_micro_usd: int
    call_id: int | None = None
    """The run that carries the call out, or has done so, and the decision that it was made for."""
    call_decision_id: int | None = None

    @classmethod
    def of(cls, judged: Judged) -> Decided:
        run_id = None if judged.run is None else judged.run.id
        allowed = judged.code in (Code.OK, Code.IDEMPOTENCY)
        return cls(
            code=judged.code,
            decision_id=judged.decision_id,
            cost_micro_usd=judged.cost_micro_usd,
            call_id=run_id if allowed else None,
            call_decision_id=judged.run_decision_id if allowed else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """An action that was decided on."""

    position: int
    code: Code
    """The decision's."""
    cost_micro_usd: int
    call_key: str
    call_id: int | None
    call_decision_id: int | None
    outcome: Code | None
    """How it ended; None while it goes on."""
    message: str | None
    result: dict[str, Any] | None


def _acted(row: sa.RowMapping) -> Acted:
    outcome = row["outcome"]
    return Acted(**{**row, "code": Code(row["code"]), "outcome": None if outcome is None else Code(outcome)})


def _of(claim: Claim) -> dict[str, Any]:
    return {"tenant_id": claim.tenant_id, "run_decision_id": claim.decision_id}


_ACTIONS = """
SELECT position, code, cost_micro_usd, call_key, call_id, call_decision_id, outcome, message, result
FROM run_actions WHERE tenant_id = :tenant_id AND run_decision_id = :run_decision_id"""

_ALL = sa.text(f"{_ACTIONS} ORDER BY position")


def decided(claim: Claim) -> Statement[list[Acted]]:
    """The run's actions that were decided on, in this attempt or an earlier one, in their order."""
    return Statement("actions.decided", _ALL, many(_acted), _of(claim))


_ONE = sa.text(f"{_ACTIONS} AND position = :position")


def find(claim: Claim, position: int) -> Statement[Acted | None]:
    return Statement("actions.find", _ONE, one_or_none(_acted), {**_of(claim), "position": position})


_ASKER = sa.text("""
SELECT t.plan, d.actor FROM tenants t
LEFT JOIN audit_decisions d ON d.id = :run_decision_id AND d.tenant_id = t.id
WHERE t.id = :tenant_id
""")


def asker(claim: Claim) -> Statement[Caller]:
    """Who asked for the run, with the plan that the tenant has now."""

    def read(result: sa.CursorResult[Any]) -> Caller:
        row = result.mappings().one()
        return Caller(
            tenant_id=claim.tenant_id,
            plan=Plan(row["plan"]),
            key_id=row["actor"] or "",
            key_preview="",
            rate_limit=None,
            disabled=False,
        )

    return Statement("actions.asker", _ASKER, read, _of(claim))


_EVENT = """
    SELECT tenant_id, CAST(:run_id AS text) AS run_id, {at} AS at, {type_} AS type, {status} AS status,
           CAST(NULL AS text) AS step, CAST(:tool AS text) AS tool, CAST(:agent_id AS text) AS agent_id,
           {message} AS message, CAST(NULL AS bigint) AS duration_ms,
           json_build_object('key', CAST(:run_key AS text), 'action', CAST(:position AS integer),
                             'call', call_key) AS data
    FROM {source}"""


def _started(source: str) -> str:
    """The event of a decision. Where it is also the end, the events' order is by their times."""
    return _EVENT.format(
        at="onceonly_now() - interval '1 microsecond'",
        type_="'tool_call'",
        status="'start'",
        message="CAST(NULL AS text)",
        source=source,
    )


def _ended(source: str) -> str:
    return _EVENT.format(
        at="onceonly_now()",
        type_="'tool_result'",
        status="CAST(:status AS text)",
        message="CAST(:message AS text)",
        source=source,
    )


_INSERTED = """
    INSERT INTO run_actions (tenant_id, run_decision_id, position, decision_id, code, cost_micro_usd, call_key, call_id,
                             call_decision_id, done_at, outcome, message)
    VALUES (:tenant_id, :run_decision_id, :position, :decision_id, :code, :cost_micro_usd, :call_key,
            CAST(:call_id AS bigint), CAST(:call_decision_id AS bigint),
            CASE WHEN CAST(:done AS boolean) THEN onceonly_now() END,
            CASE WHEN CAST(:done AS boolean) THEN CAST(:code AS text) END, CAST(:message AS text))
    RETURNING *"""

_DECIDE = sa.text(f"""
WITH noted AS ({_INSERTED}
), telling AS ({_started("noted")} UNION ALL {_ended("noted WHERE done_at IS NOT NULL")}
), {recording("telling")}
SELECT FROM noted
""")


def decide(claim: Claim, position: int, call: Call, decided: Decided) -> Statement[None]:
    """Note the decision on an action, in the transaction that made it and holds the claim.

    Without a call that follows, it is the action's end too.
    """
    done, allowed = decided.call_id is None, decided.code in (Code.OK, Code.IDEMPOTENCY)
    params = {
        **_told(claim, position, call.tool),
        "decision_id": decided.decision_id,
        "code": decided.code.value,
        "cost_micro_usd": decided.cost_micro_usd,
        "call_key": call.key,
        "call_id": decided.call_id,
        "call_decision_id": decided.call_decision_id,
        "done": done,
        "status": "ok" if allowed else "blocked",
        "message": REASONS[decided.code] if done else None,
    }
    return Statement("actions.decide", _DECIDE, nothing, params)


def _told(claim: Claim, position: int, tool: str) -> dict[str, Any]:
    return {
        **_of(claim),
        "position": position,
        "run_id": claim.run_id,
        "run_key": claim.key,
        "tool": tool,
        "agent_id": claim.agent_id,
    }


_FINISH = sa.text(f"""
WITH done AS (
    UPDATE run_actions SET done_at = onceonly_now(), outcome = :outcome, message = CAST(:message AS text),
        result = CAST(:result AS json)
    WHERE tenant_id = :tenant_id AND run_decision_id = :run_decision_id AND position = :position AND done_at IS NULL
    RETURNING *
), telling AS ({_ended("done")}), {recording("telling")}
SELECT FROM done
""")


def finish(
    claim: Claim,
    position: int,
    tool: str,
    outcome: Code,
    *,
    status: str,
    message: str | None,
    result: dict[str, Any] | None,
) -> Statement[None]:
    """Note how an action ended, and tell the run's timeline; after `claims.hold_claim`, in its transaction."""
    params = {
        **_told(claim, position, tool),
        "outcome": outcome.value,
        "status": status,
        "message": message,
        "result": None if result is None else compact_json(result).decode(),
    }
    return Statement("actions.finish", _FINISH, nothing, params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the call of an action stands."""

    state: RunState
    result: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    job: str
    """Who carries it out."""


# Somebody's own lease under the call's key: no decision was made on it, so no audit trail tells of its end.
_GONE = Standing(
    state=RunState.FAILED,
    result=None,
    error_code="lease_ended",
    error_message="a lease had the call's key, and how it ended isn't known any more",
    job="",
)

# A call that is over may have given its key to another one: then what the audit trail knows of it is all there is.
_STANDING = sa.text("""
WITH here AS (
    SELECT state, result, error_code, error_message, job FROM runs
    WHERE id = :call_id AND decision_id IS NOT DISTINCT FROM CAST(:call_decision_id AS bigint)
)
SELECT * FROM here
UNION ALL
SELECT outcome, NULL, error_code, CASE WHEN error_code <> 'policy_blocked' THEN error_code END, ''
FROM audit_outcomes WHERE decision_id = :call_decision_id AND NOT EXISTS (SELECT FROM here)
""")


def standing(action: Acted) -> Statement[Standing]:
    """How the call of an action stands, whoever asked for it first."""

    def read(result: sa.CursorResult[Any]) -> Standing:
        row = result.mappings().one_or_none()
        return _GONE if row is None else Standing(**{**row, "state": RunState(row["state"])})

    params = {"call_id": action.call_id, "call_decision_id": action.call_decision_id}
    return Statement("actions.standing", _STANDING, read, params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What a dry run would have used up before an action."""

    actions: int = 0
    calls: int = 0
    """of this action's tool"""
    spend_micro_usd: int = 0
    repeated: bool = False
    """this very call is among it"""


_FORESEEN = called(
    f"CAST(:before_repeated AS boolean) OR EXISTS ({held('q')})",
    actions="CAST(:before_actions AS bigint) + 1",
    calls="CAST(:before_calls AS bigint) + 1",
    spend="CAST(:before_spend_micro_usd AS bigint) + c.cost",
)

_FORESEE = sa.text(f"""
WITH asked AS MATERIALIZED (
    SELECT q.* FROM json_to_recordset(CAST(:calls AS json)) AS q (n integer, {ASKED})
), {AGENTS}, judged AS MATERIALIZED ({_FORESEEN}
), decided AS (
    INSERT INTO audit_decisions (tenant_id, actor, agent_id, tool, run_key, allowed, decision, policy_reason,
                                 policy_code, risk_level, args_hash, policy_version)
    SELECT q.tenant_id, q.actor, q.agent_id, q.tool, q.key, code IN ('ok', 'tool_idempotency'), 'dry_run', {REASON},
           code, q.risk_level, q.args_hash, policy_version
    FROM judged JOIN asked q USING (n)
    RETURNING id
)
SELECT judged.code, judged.cost, decided.id FROM judged, decided
""")


def foresee(call: Call, before: Before) -> Statement[Decided]:
    """Decide on a call as if what came before it had been made; it is recorded as a dry run, and nothing follows.

    Whoever else asks for its agent waits until this is committed.
    """

    def read(result: sa.CursorResult[Any]) -> Decided:
        row = result.mappings().one()
        return Decided(code=Code(row["code"]), decision_id=row["id"], cost_micro_usd=row["cost"])

    params = {f"before_{name}": getattr(before, name) for name in Before.__slots__}
    return Statement("actions.foresee", _FORESEE, read, params | {"calls": as_asked([call])["calls"]})
