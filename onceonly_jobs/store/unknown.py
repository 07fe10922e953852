"""Calls whose outcome is unknown: which they are, and the one statement that settles one of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.store.governance import AGENTS_HELD, agents_first
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.rows import CONFIRM_PAUSES_S, NEXT_TOKEN, RETAINED, RUN_COLUMNS, finished, to_run
from onceonly_jobs.store.statement import Statement, many, one_or_none

DID_NOT_HAPPEN = "did_not_happen"
"""error_code of a call that is settled as never made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownCall:
    """A call that may have happened, held until that is settled."""

    tenant_id: str
    key: str
    run_id: str
    agent_id: str
    job: str
    tool: str
    effect: str
    args: dict[str, Any]
    message: str | None
    started_at: datetime
    """When the attempt began of which nobody knows the end."""
    first_seen_at: datetime
    reserved_micro_usd: int
    decision_id: int
    confirmations: int
    """How often its tool was asked."""
    confirm_at: datetime | None
    """When it is asked next; None: it is a person's turn."""


_COLUMNS = """tenant_id, key, run_id, agent_id, job, tool, effect, coalesce(metadata->'args', '{}') AS args,
    error_message AS message, started_at, first_seen_at, reserved_micro_usd, decision_id, confirmations, confirm_at"""

_OF_TENANT = "state = 'unknown' AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)"

_LIST = sa.text(f"""
SELECT {_COLUMNS} FROM runs WHERE {_OF_TENANT}
ORDER BY started_at, id LIMIT :limit OFFSET :offset
""")

_TOTAL = sa.text(f"SELECT count(*) FROM runs WHERE {_OF_TENANT}")


def calls(tenant_id: str | None, limit: int, offset: int) -> Statement[list[UnknownCall]]:
    """The calls that wait to be settled, oldest first; None: of every tenant."""
    return Statement(
        "unknown.calls",
        _LIST,
        many(lambda row: UnknownCall(**row)),
        {"tenant_id": tenant_id, "limit": limit, "offset": offset},
    )


def total(tenant_id: str | None) -> Statement[int]:
    """How many calls wait to be settled."""
    return Statement("unknown.total", _TOTAL, lambda r: int(r.scalar_one()), {"tenant_id": tenant_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What somebody found out about a call."""

    key: str
    happened: bool
    actor: str
    decision_id: int | None = None
    """Only this call of the key, and no later one."""
    result: dict[str, Any] | None = None
    result_hash: str | None = None
    actual_micro_usd: int | None = None
    """What it really cost; None keeps the reservation."""


_THIS = """tenant_id = :tenant_id AND key = :key AND state = 'unknown'
        AND (CAST(:decision_id AS bigint) IS NULL OR decision_id = :decision_id)"""

# Retention counts from here: however long nobody knew, whoever waited for the answer can still read it. The new
# token refuses a worker that was believed dead: it must not think that its own outcome was stored.
_SETTLE = sa.text(f"""
WITH {agents_first(f"SELECT tenant_id, agent_id FROM runs WHERE {_THIS}")}, done AS (
    UPDATE runs SET
        state = CASE WHEN CAST(:happened AS boolean) THEN 'completed' ELSE 'failed' END,
        result = CAST(:result AS json), result_hash = CAST(:result_hash AS text),
        error_code = CASE WHEN NOT CAST(:happened AS boolean) THEN '{DID_NOT_HAPPEN}' END,
        error_message = CASE WHEN NOT CAST(:happened AS boolean) THEN 'settled: the call did not happen' END,
        repeatable = NOT CAST(:happened AS boolean), version = version + 1,
        fencing_token = {NEXT_TOKEN}, done_at = onceonly_now(),
        retain_until_at = onceonly_now() + make_interval(secs => coalesce(retention_s, CAST(:retention_s AS integer)))
    WHERE {_THIS} AND {AGENTS_HELD}
    RETURNING *
), {
    finished(
        "done",
        actual="CAST(:actual_micro_usd AS bigint)",
        given_back="(NOT CAST(:happened AS boolean))",
        told=None,
    )
}, told AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, tool, message, data)
    SELECT tenant_id, 'settled', 'ai', key, state, agent_id, tool, error_code,
           json_build_object('actor', CAST(:actor AS text), 'happened', CAST(:happened AS boolean),
                             'decision_id', decision_id)
    FROM done
)
SELECT {RUN_COLUMNS}, agent_id, tool, decision_id FROM done
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A run that was settled, and what its timeline needs to say so."""

    run: Run
    agent_id: str | None
    tool: str | None
    decision_id: int | None


def settle(tenant_id: str, settlement: Settlement, retention_s: int) -> Statement[Settled | None]:
    """End an unknown call as completed, or as failed and never made; its reservation is booked or given back.

    None when no such call is unknown: then nothing was changed.
    """

    def read(row: sa.RowMapping) -> Settled:
        rest = {name: row[name] for name in ("agent_id", "tool", "decision_id")}
        return Settled(run=to_run(row), **rest)

    params = {name: getattr(settlement, name) for name in Settlement.__slots__}
    result = settlement.result
    params["result"] = None if result is None else compact_json(result).decode()
    params |= {"tenant_id": tenant_id, "retention_s": retention_s}
    return Statement("unknown.settle", _SETTLE, one_or_none(read), params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the call that a key stands for now was settled."""

    run: Run
    happened: bool
    actor: str
    at: datetime
    decision_id: int


# One decision per call: a settlement of an earlier call under the same key says nothing about this one.
_VERDICT = sa.text(f"""
SELECT r.*, e.actor, e.at FROM (
    SELECT {RUN_COLUMNS}, tenant_id, decision_id FROM runs
    WHERE tenant_id = :tenant_id AND key = :key AND owner = 'server' AND {RETAINED}
        AND (state = 'completed' OR state = 'failed' AND error_code = '{DID_NOT_HAPPEN}')
) r CROSS JOIN LATERAL (
    SELECT e.data->>'actor' AS actor, e.at FROM run_events e
    WHERE e.tenant_id = r.tenant_id AND e.run_id = r.run_id AND e.type = 'settled'
        AND e.data->>'decision_id' = r.decision_id::text
    ORDER BY e.id LIMIT 1
) e
""")


def verdict(tenant_id: str, key: str) -> Statement[Verdict | None]:
    """The settlement that stands; None when the key's call was not settled by anybody."""

    def read(row: sa.RowMapping) -> Verdict:
        run = to_run(row)
        happened = run.state is RunState.COMPLETED
        return Verdict(
            run=run, happened=happened, actor=row["actor"], at=row["at"], decision_id=row["decision_id"]
        )

    return Statement("unknown.verdict", _VERDICT, one_or_none(read), {"tenant_id": tenant_id, "key": key})


_TAKE = sa.text("""
WITH due AS (
    SELECT id FROM runs WHERE state = 'unknown' AND confirm_at <= onceonly_now()
    ORDER BY confirm_at LIMIT :batch FOR UPDATE SKIP LOCKED
)
UPDATE runs r SET confirmations = confirmations + 1, confirm_at = onceonly_now() + make_interval(
    secs => (CAST(:pauses AS double precision[]))[confirmations + 2])
FROM due WHERE r.id = due.id
RETURNING r.id, r.tenant_id, r.key, r.agent_id, r.queue, onceonly_now() AS due_at
""")


def take_confirmable(batch: int, job: str) -> Statement[list[Due]]:
    """Unknown calls whose tool is to be asked now, as messages for `job`; the time of the next question is kept."""

    def read(result: sa.CursorResult[Any]) -> list[Due]:
        return [Due(**row, job=job) for row in result.mappings()]

    return Statement(
        "unknown.take_confirmable", _TAKE, read, {"batch": batch, "pauses": list(CONFIRM_PAUSES_S)}
    )


_BY_ID = sa.text(f"SELECT {_COLUMNS} FROM runs WHERE id = :id AND state = 'unknown'")


def by_id(run: int) -> Statement[UnknownCall | None]:
    """A call by its row; None when its outcome is known."""
    return Statement("unknown.by_id", _BY_ID, one_or_none(lambda row: UnknownCall(**row)), {"id": run})
