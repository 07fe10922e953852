"""What became of a schedule's ticks, and which of its runs are still active."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.schedules import TickState
from onceonly_jobs.store.governance import AGENTS_HELD, agents_first
from onceonly_jobs.store.rows import FINISH, finished
from onceonly_jobs.store.statement import Statement, count, many, nothing
from onceonly_jobs.store.webhooks import refused_ticks

Source = Literal["scheduler", "trigger", "backfill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    tick_at: datetime
    key: str
    state: TickState
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTick(Tick):
    source: Source
    recorded_at: datetime


# A tick that has a run keeps it, whoever looks at it again.
_RECORD = sa.text(f"""
WITH recorded AS (
INSERT INTO schedule_ticks AS t (tenant_id, name, tick_at, key, state, source, detail, recorded_at)
SELECT :tenant_id, :name, tick_at, key, state, :source, detail, onceonly_now()
FROM json_to_recordset(CAST(:ticks AS json)) AS given (tick_at timestamptz, key text, state text, detail text)
ON CONFLICT (tenant_id, name, tick_at, key) DO UPDATE SET
    state = excluded.state, source = excluded.source, detail = excluded.detail, recorded_at = excluded.recorded_at
WHERE t.state <> 'fired'
RETURNING t.*
), {refused_ticks("recorded")}
SELECT FROM recorded
""")


def record(tenant_id: str, name: str, source: Source, ticks: list[Tick]) -> Statement[None]:
    """Write down what became of ticks, each given once; tell of those that the scheduler was refused."""
    rows = [
        {"tick_at": tick.tick_at.isoformat(), "key": tick.key, "state": tick.state, "detail": tick.detail}
        for tick in ticks
    ]
    params = {"tenant_id": tenant_id, "name": name, "source": source, "ticks": json.dumps(rows)}
    return Statement("ticks.record", _RECORD, nothing, params)


_LATEST = sa.text("""
SELECT tick_at, key, state, detail, source, recorded_at FROM schedule_ticks
WHERE tenant_id = :tenant_id AND name = :name
ORDER BY tick_at DESC, key DESC LIMIT :limit OFFSET :offset
""")


def latest(tenant_id: str, name: str, limit: int, offset: int) -> Statement[list[RecordedTick]]:
    """A schedule's ticks, the latest first."""
    return Statement(
        "ticks.latest",
        _LATEST,
        many(lambda row: RecordedTick(**{**row, "state": TickState(row["state"])})),
        {"tenant_id": tenant_id, "name": name, "limit": limit, "offset": offset},
    )


_FORGET = sa.text("""
DELETE FROM schedule_ticks WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM schedule_ticks
    WHERE recorded_at < onceonly_now() - make_interval(secs => CAST(:kept_s AS integer))
    ORDER BY recorded_at LIMIT :batch FOR UPDATE SKIP LOCKED
))
""")


def forget_old(kept_s: int, batch: int) -> Statement[int]:
    """Drop ticks that were recorded longer ago; how many."""
    return Statement("ticks.forget_old", _FORGET, count, {"kept_s": kept_s, "batch": batch})


_ACTIVE = """tenant_id = :tenant_id AND schedule = :schedule AND state IN ('queued', 'in_progress')
    AND key <> :but"""

_FIND_ACTIVE = sa.text(f"SELECT key FROM runs WHERE {_ACTIVE} LIMIT 1")


def active_run(tenant_id: str, schedule: str, but: str) -> Statement[str | None]:
    """The key of a queued or running run of a schedule, other than `but`; None when there is none."""
    return Statement(
        "ticks.active_run",
        _FIND_ACTIVE,
        lambda r: r.scalar_one_or_none(),
        {"tenant_id": tenant_id, "schedule": schedule, "but": but},
    )


# What a worker has in hand keeps its lease, so that its handler is told at its next heartbeat.
_CANCEL = sa.text(f"""
WITH {agents_first(f"SELECT tenant_id, agent_id FROM runs WHERE {_ACTIVE} AND attempt = 0")}, before AS (
    SELECT id FROM runs WHERE {_ACTIVE} AND owner = 'server' AND {AGENTS_HELD} ORDER BY id FOR UPDATE
), done AS (
    UPDATE runs r SET state = 'cancelled', error_code = 'cancelled', error_message = CAST(:reason AS text),
        lease_until_at = CASE WHEN r.state = 'in_progress' THEN r.lease_until_at END, {FINISH}
    FROM before WHERE r.id = before.id
    RETURNING r.*
), {finished("done", given_back="attempt = 0")}
SELECT key FROM done
""")


def cancel_active(
    tenant_id: str, schedule: str, but: str, reason: str, retention_s: int
) -> Statement[list[str]]:
    """Cancel the queued and running runs of a schedule, other than `but`; their keys."""

    def read(result: sa.CursorResult[Any]) -> list[str]:
        return list(result.scalars())

    params = {
        "tenant_id": tenant_id,
        "schedule": schedule,
        "but": but,
        "reason": reason,
        "retention_s": retention_s,
    }
    return Statement("ticks.cancel_active", _CANCEL, read, params)
