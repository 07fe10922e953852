"""Runs as whoever operates the system looks for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.store.statement import Statement, many, one_or_none

Wanted = Literal["queued", "in_progress", "completed", "failed", "cancelled", "unknown", "active"]
"""A state, or those of a run that has not come to its end."""

MOST_COUNTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs are looked for; None means any."""

    tenant_id: str | None
    state: Wanted | None = None
    job: str | None = None
    """Also a tool's name, for the calls of it."""
    agent_id: str | None = None
    key_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    tenant_id: str
    key: str
    run_id: str
    owner: str
    state: str
    job: str | None
    agent_id: str | None
    attempt: int
    max_attempts: int
    failures: int
    crashes: int
    max_crashes: int
    progress: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    first_seen_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    """When the latest attempt began."""
    lease_until_at: datetime | None
    done_at: datetime | None
    read_at: datetime
    last_at: datetime | None
    last_type: str | None
    last_status: str | None
    events_count: int
    errors: list[dict[str, Any]] | None = None
    """What is known of each start that ended badly, newest last; only of a single run."""


_COLUMNS = """r.tenant_id, r.key, r.run_id, r.owner, r.state, coalesce(r.tool, r.job) AS job, r.agent_id, r.attempt,
    r.max_attempts, r.failures, r.crashes, r.max_crashes, r.progress,
    r.error_code, r.error_message, r.first_seen_at, r.due_at, r.started_at,
    r.lease_until_at, r.done_at, onceonly_now() AS read_at,
    t.last_at, t.last_type, t.last_status, coalesce(t.events_count, 0) AS events_count"""

_HEADED = "runs r LEFT JOIN timelines t ON t.tenant_id = r.tenant_id AND t.run_id = r.run_id"

# Spelled out, so that the indexes over some states only can be used.
_STATES: dict[str, str] = {
    **{
        state: f"r.state = '{state}'"
        for state in ("queued", "in_progress", "completed", "failed", "cancelled", "unknown")
    },
    "active": "r.state IN ('queued', 'in_progress', 'unknown')",
}


def _where(wanted: Filter) -> tuple[str, dict[str, Any]]:
    """The conditions that are asked for, and no others: each combination gets a plan of its own."""
    params = {
        "tenant_id": wanted.tenant_id,
        "job": wanted.job,
        "agent_id": wanted.agent_id,
        "prefix": wanted.key_prefix or None,
    }
    conditions = {
        "tenant_id": "r.tenant_id = :tenant_id",
        "job": "coalesce(r.tool, r.job) = :job",
        "agent_id": "r.agent_id = :agent_id",
        "prefix": "starts_with(r.key, :prefix)",
    }
    given = {name: value for name, value in params.items() if value is not None}
    parts = [conditions[name] for name in given]
    if wanted.state is not None:
        parts.append(_STATES[wanted.state])
    return " AND ".join(parts) or "true", given


def _listed(row: sa.RowMapping) -> ListedRun:
    return ListedRun(**row)


def runs(wanted: Filter, limit: int, offset: int) -> Statement[list[ListedRun]]:
    """A page of the runs that match, latest key first."""
    where, params = _where(wanted)
    query = f"SELECT {_COLUMNS} FROM {_HEADED} WHERE {where} ORDER BY r.id DESC LIMIT :limit OFFSET :offset"
    return Statement(
        "listing.runs", sa.text(query), many(_listed), {**params, "limit": limit, "offset": offset}
    )


def total(wanted: Filter) -> Statement[int]:
    """How many runs match; more than MOST_COUNTED are not counted."""
    where, params = _where(wanted)
    query = f"SELECT count(*) FROM (SELECT FROM runs r WHERE {where} LIMIT {MOST_COUNTED}) matching"
    return Statement("listing.total", sa.text(query), lambda r: int(r.scalar_one()), params)


_BY_KEY = sa.text(
    f"SELECT {_COLUMNS}, r.errors FROM {_HEADED} WHERE r.tenant_id = :tenant_id AND r.key = :key"
)


def by_key(tenant_id: str, key: str) -> Statement[ListedRun | None]:
    """The run under a key, whether or not the key still answers for it."""
    return Statement("listing.by_key", _BY_KEY, one_or_none(_listed), {"tenant_id": tenant_id, "key": key})
