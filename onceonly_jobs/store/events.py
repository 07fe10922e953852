"""Timelines per run, and the short-lived feed of a namespace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.timelines import CLOSING, OPENING
from onceonly_jobs.store.statement import Statement, many

TIMELINE_COLUMNS = "tenant_id, run_id, at, type, status, step, tool, agent_id, message, duration_ms, data"


def recording(source: str) -> str:
    """Two CTEs that append an event per row of `source` and bring the heads of their timelines up to date.

    `source` must have the columns of TIMELINE_COLUMNS. Several runs may share a timeline, and a statement may
    upsert a row only once: hence one source for all of its events, and the grouping, whose order keeps concurrent
    batches from deadlocking. An event gets its id while its timeline's head is locked: readers that go on from the
    last id they have seen miss none, however transactions overlap.
    """
    return f"""
    {source}_headed AS (
        INSERT INTO timelines AS t (tenant_id, run_id, last_at, last_type, last_status, events_count)
        SELECT tenant_id, run_id, max(at), (array_agg(type ORDER BY at DESC))[1],
               (array_agg(status ORDER BY at DESC))[1], count(*)
        FROM {source} GROUP BY tenant_id, run_id ORDER BY tenant_id, run_id
        {HEAD_MOVES} RETURNING t.tenant_id, t.run_id
    ), {source}_recorded AS (
        INSERT INTO run_events ({TIMELINE_COLUMNS})
        SELECT {TIMELINE_COLUMNS} FROM {source} WHERE (SELECT count(*) FROM {source}_headed) > 0 ORDER BY at
    )"""


HEAD_MOVES = """
        ON CONFLICT (tenant_id, run_id) DO UPDATE SET
            events_count = t.events_count + excluded.events_count,
            last_at = greatest(t.last_at, excluded.last_at),
            last_type = CASE WHEN excluded.last_at >= t.last_at THEN excluded.last_type ELSE t.last_type END,
            last_status = CASE WHEN excluded.last_at >= t.last_at THEN excluded.last_status ELSE t.last_status END
"""


def event_row(
    type_: str,
    status: str,
    *,
    source: str,
    message: str = "NULL",
    duration: str = "NULL",
    at: str = "onceonly_now()",
    more: str = "",
) -> str:
    """SELECT of one timeline event per row of `source`, a CTE of runs. type_ and status are SQL.

    more: further pairs for the event's data, as SQL that begins with a comma; pairs that are null are left out.
    """
    return f"""
        SELECT tenant_id, run_id, {at} AS at, {type_} AS type, {status} AS status,
               CAST(NULL AS text) AS step, CAST(coalesce(tool, job) AS text) AS tool, agent_id,
               CAST({message} AS text) AS message, CAST({duration} AS bigint) AS duration_ms,
               json_strip_nulls(json_build_object('key', key, 'attempt', attempt{more})) AS data
        FROM {source}"""


def elapsed_ms(since: str, until: str = "onceonly_now()") -> str:
    """SQL for the milliseconds between two times."""
    return f"extract(epoch FROM {until} - {since}) * 1000"


ATTEMPT_MS = elapsed_ms("coalesce(started_at, first_seen_at)")
"""How long the attempt has taken that ends now; of a run that never started, how long it was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    id: int
    at: datetime
    type: str
    status: str | None
    duration_ms: int | None
    step: str | None
    tool: str | None
    req_id: str | None
    lease_id: str | None
    agent_id: str | None
    message: str | None
    data: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    run_id: str
    last_at: datetime
    last_type: str
    last_status: str | None
    events_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedEvent:
    id: int
    at: datetime
    type: str
    kind: str | None
    key: str | None
    status: str | None
    agent_id: str | None
    tool: str | None
    message: str | None
    data: dict[str, Any] | None


_AT = "coalesce(to_timestamp(CAST(:ts AS double precision)), onceonly_now())"

_APPEND = sa.text(f"""
WITH headed AS (
    INSERT INTO timelines AS t (tenant_id, run_id, last_at, last_type, last_status)
    VALUES (:tenant_id, :run_id, {_AT}, :type, CAST(:status AS text))
    {HEAD_MOVES} RETURNING t.tenant_id, t.run_id
), appended AS (
    INSERT INTO run_events (tenant_id, run_id, at, type, status, step, tool, req_id, lease_id, agent_id,
                            message, duration_ms, data)
    SELECT tenant_id, run_id, {_AT}, :type, CAST(:status AS text), CAST(:step AS text), CAST(:tool AS text),
           CAST(:req_id AS text), CAST(:lease_id AS text), CAST(:agent_id AS text), CAST(:message AS text),
           CAST(:duration_ms AS bigint), CAST(:data AS json)
    FROM headed
    RETURNING id
)
SELECT id FROM appended
""")


def append(
    tenant_id: str, run_id: str, type_: str, *, data: dict[str, Any] | None = None, **fields: Any
) -> Statement[int]:
    """Add an event to a run's timeline, which begins with it if need be. Gives the event's id.

    fields: ts (Unix seconds, default now), status, step, tool, req_id, lease_id, agent_id, message, duration_ms.
    """
    optional = ("ts", "status", "step", "tool", "req_id", "lease_id", "agent_id", "message", "duration_ms")
    return Statement(
        "events.append",
        _APPEND,
        lambda r: int(r.scalar_one()),
        {
            "tenant_id": tenant_id,
            "run_id": run_id,
            "type": type_,
            "data": None if data is None else json.dumps(data, ensure_ascii=False),
            **{name: fields.get(name) for name in optional},
        },
    )


_TIMELINE = sa.text("""
SELECT id, at, type, status, duration_ms, step, tool, req_id, lease_id, agent_id, message, data
FROM run_events WHERE tenant_id = :tenant_id AND run_id = :run_id
ORDER BY at, id LIMIT :limit OFFSET :offset
""")


def timeline(tenant_id: str, run_id: str, limit: int, offset: int) -> Statement[list[Event]]:
    """A run's events, oldest first."""
    return Statement(
        "events.timeline",
        _TIMELINE,
        many(lambda row: Event(**row)),
        {"tenant_id": tenant_id, "run_id": run_id, "limit": limit, "offset": offset},
    )


_AFTER = sa.text("""
SELECT id, at, type, status, duration_ms, step, tool, req_id, lease_id, agent_id, message, data
FROM run_events WHERE tenant_id = :tenant_id AND run_id = :run_id AND id > :after
ORDER BY id LIMIT :limit
""")


def after(tenant_id: str, run_id: str, event_id: int, limit: int) -> Statement[list[Event]]:
    """A run's events with larger ids, in the order in which they were written."""
    return Statement(
        "events.after",
        _AFTER,
        many(lambda row: Event(**row)),
        {"tenant_id": tenant_id, "run_id": run_id, "after": event_id, "limit": limit},
    )


_MILESTONES = sa.text(f"""
SELECT type, data->>'key' AS key FROM run_events
WHERE tenant_id = :tenant_id AND run_id = :run_id AND id <= :until AND type IN ({
    ", ".join(f"'{name}'" for name in sorted(OPENING | CLOSING))
})
ORDER BY id
""")


def milestones(tenant_id: str, run_id: str, until: int) -> Statement[list[tuple[str, str | None]]]:
    """Types and keys of the events up to an id that say whether the timeline's runs have ended."""
    return Statement(
        "events.milestones",
        _MILESTONES,
        many(lambda row: (row["type"], row["key"])),
        {"tenant_id": tenant_id, "run_id": run_id, "until": until},
    )


_COUNT = sa.text("SELECT events_count FROM timelines WHERE tenant_id = :tenant_id AND run_id = :run_id")


def timeline_length(tenant_id: str, run_id: str) -> Statement[int]:
    """How many events a run has; 0 for a run never heard of."""
    return Statement(
        "events.timeline_length",
        _COUNT,
        lambda r: int(r.scalar_one_or_none() or 0),
        {"tenant_id": tenant_id, "run_id": run_id},
    )


_LATEST = sa.text("""
SELECT run_id, last_at, last_type, last_status, events_count FROM timelines
WHERE tenant_id = :tenant_id AND starts_with(run_id, :prefix)
ORDER BY last_at DESC, run_id LIMIT :limit OFFSET :offset
""")

_TOTAL = sa.text(
    "SELECT count(*) FROM timelines WHERE tenant_id = :tenant_id AND starts_with(run_id, :prefix)"
)


def latest(tenant_id: str, prefix: str, limit: int, offset: int) -> Statement[list[Timeline]]:
    """Timelines whose run_id begins with prefix, latest activity first."""
    return Statement(
        "events.latest",
        _LATEST,
        many(lambda row: Timeline(**row)),
        {"tenant_id": tenant_id, "prefix": prefix, "limit": limit, "offset": offset},
    )


def latest_total(tenant_id: str, prefix: str) -> Statement[int]:
    return Statement(
        "events.latest_total",
        _TOTAL,
        lambda r: int(r.scalar_one()),
        {"tenant_id": tenant_id, "prefix": prefix},
    )


_FEED = sa.text("""
SELECT id, at, type, kind, key, status, agent_id, tool, message, data FROM feed_events
WHERE tenant_id = :tenant_id ORDER BY id DESC LIMIT :limit OFFSET :offset
""")


def feed(tenant_id: str, limit: int, offset: int) -> Statement[list[FeedEvent]]:
    """The namespace's recent activity, newest first."""
    return Statement(
        "events.feed",
        _FEED,
        many(lambda row: FeedEvent(**row)),
        {"tenant_id": tenant_id, "limit": limit, "offset": offset},
    )


_FEED_AFTER = sa.text("""
SELECT id, at, type, kind, key, status, agent_id, tool, message, data FROM feed_events
WHERE tenant_id = :tenant_id AND id > :after AND id <> ALL (CAST(:seen AS bigint[]))
ORDER BY id LIMIT :limit
""")


def feed_after(tenant_id: str, event_id: int, seen: list[int], limit: int) -> Statement[list[FeedEvent]]:
    """The namespace's activity with larger ids than event_id, oldest first, without those already seen."""
    return Statement(
        "events.feed_after",
        _FEED_AFTER,
        many(lambda row: FeedEvent(**row)),
        {"tenant_id": tenant_id, "after": event_id, "seen": seen, "limit": limit},
    )


_FEED_END = sa.text("SELECT coalesce(max(id), 0) FROM feed_events WHERE tenant_id = :tenant_id")


def feed_end(tenant_id: str) -> Statement[int]:
    """The id of the namespace's latest activity; 0 where there was none."""
    return Statement("events.feed_end", _FEED_END, lambda r: int(r.scalar_one()), {"tenant_id": tenant_id})
