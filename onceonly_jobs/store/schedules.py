"""Schedules as they are kept: their definition, and when they tick next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.schedules import Definition, Misfire, Origin, Overlap, Timing
from onceonly_jobs.store.statement import Statement, count, many, one_or_none

DEFINITION = [field.name for field in fields(Definition)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as stored."""

    tenant_id: str
    name: str
    definition: Definition
    anchor_at: datetime
    next_tick_at: datetime | None
    last_tick_at: datetime | None
    paused_at: datetime | None
    origin: Origin
    edited: list[str]
    version: int
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    deleted_at: datetime | None
    read_at: datetime
    """The database's clock when this was read."""

    @property
    def timing(self) -> Timing:
        return self.definition.timing(self.anchor_at)

    @property
    def status(self) -> Literal["active", "paused", "finished"]:
        if self.next_tick_at is None:
            return "finished"
        return "active" if self.paused_at is None else "paused"


_STANDING = [field.name for field in fields(Schedule) if field.name not in ("definition", "read_at")]
_COLUMNS = ", ".join(f"s.{name}" for name in (*DEFINITION, *_STANDING)) + ", onceonly_now() AS read_at"


def _schedule(row: Mapping[Any, Any]) -> Schedule:
    row = {name: _utc(value) for name, value in row.items()}
    definition = {name: row[name] for name in DEFINITION}
    definition |= {"misfire": Misfire(row["misfire"]), "overlap": Overlap(row["overlap"])}
    standing = {name: row[name] for name in (*_STANDING, "read_at")}
    return Schedule(definition=Definition(**definition), **standing | {"origin": Origin(row["origin"])})


def _utc(value: Any) -> Any:
    """A time in UTC: in the zone of the database's session, arithmetic would go by the clock on the wall."""
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _values(definition: Definition) -> dict[str, Any]:
    values = {name: getattr(definition, name) for name in DEFINITION}
    for name in ("payload", "metadata"):
        values[name] = None if values[name] is None else compact_json(values[name]).decode()
    return values


_TYPES = {
    **dict.fromkeys(("every_s", "ttl_s", "misfire_grace_s", "catch_up_limit", "jitter_s"), "integer"),
    **dict.fromkeys(("at", "start_at", "end_at"), "timestamptz"),
    **dict.fromkeys(("payload", "metadata"), "json"),
}
_GIVEN = {name: f"CAST(:{name} AS {_TYPES.get(name, 'text')})" for name in DEFINITION}


_CLOCK = sa.text("SELECT onceonly_now()")


def clock() -> Statement[datetime]:
    """What time it is."""

    def read(result: sa.CursorResult[Any]) -> datetime:
        at: datetime = _utc(result.scalar_one())
        return at

    return Statement("schedules.clock", _CLOCK, read)


_ADD = sa.text(f"""
INSERT INTO schedules AS s ({", ".join(DEFINITION)}, tenant_id, name, anchor_at, next_tick_at, paused_at, origin,
    created_by, updated_by)
VALUES ({", ".join(_GIVEN.values())}, :tenant_id, :name, :anchor_at, CAST(:next_tick_at AS timestamptz),
    CASE WHEN :paused THEN onceonly_now() END, :origin, :actor, :actor)
ON CONFLICT (tenant_id, name) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in DEFINITION)}, anchor_at = excluded.anchor_at,
    next_tick_at = excluded.next_tick_at, last_tick_at = NULL, paused_at = excluded.paused_at,
    origin = excluded.origin, edited = '{{}}', version = s.version + 1, created_at = excluded.created_at,
    created_by = excluded.created_by, updated_at = excluded.updated_at, updated_by = excluded.updated_by,
    deleted_at = NULL
WHERE s.deleted_at IS NOT NULL
RETURNING {_COLUMNS}
""")


def add(
    tenant_id: str,
    name: str,
    definition: Definition,
    *,
    anchor_at: datetime,
    next_tick_at: datetime | None,
    paused: bool,
    origin: Origin,
    actor: str,
) -> Statement[Schedule | None]:
    """A new schedule, also in the place of a deleted one; None when the name is taken."""
    return Statement(
        "schedules.add",
        _ADD,
        one_or_none(_schedule),
        {
            **_values(definition),
            "tenant_id": tenant_id,
            "name": name,
            "anchor_at": anchor_at,
            "next_tick_at": next_tick_at,
            "paused": paused,
            "origin": origin.value,
            "actor": actor,
        },
    )


_NAMED = "s.tenant_id = :tenant_id AND s.name = :name"
_FIND = sa.text(f"SELECT {_COLUMNS} FROM schedules s WHERE {_NAMED} AND deleted_at IS NULL")
_LOCK = sa.text(f"SELECT {_COLUMNS} FROM schedules s WHERE {_NAMED} FOR UPDATE")


def find(tenant_id: str, name: str) -> Statement[Schedule | None]:
    return Statement("schedules.find", _FIND, one_or_none(_schedule), {"tenant_id": tenant_id, "name": name})


def lock(tenant_id: str, name: str) -> Statement[Schedule | None]:
    """The schedule, deleted or not, with its row held until the transaction ends."""
    return Statement("schedules.lock", _LOCK, one_or_none(_schedule), {"tenant_id": tenant_id, "name": name})


_LIST = sa.text(f"""
SELECT {_COLUMNS} FROM schedules s
WHERE (CAST(:tenant_id AS text) IS NULL OR s.tenant_id = :tenant_id) AND s.deleted_at IS NULL
ORDER BY s.tenant_id, s.name LIMIT :limit OFFSET :offset
""")


def list_all(tenant_id: str | None, limit: int, offset: int) -> Statement[list[Schedule]]:
    """A tenant's schedules, or everybody's, by name."""
    return Statement(
        "schedules.list", _LIST, many(_schedule), {"tenant_id": tenant_id, "limit": limit, "offset": offset}
    )


_COUNT = sa.text("""
SELECT count(*) FROM schedules
WHERE (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id) AND deleted_at IS NULL
""")


def count_all(tenant_id: str | None) -> Statement[int]:
    return Statement("schedules.count", _COUNT, lambda r: int(r.scalar_one()), {"tenant_id": tenant_id})


_CHANGE = sa.text(f"""
UPDATE schedules s SET {", ".join(f"{name} = {given}" for name, given in _GIVEN.items())},
    anchor_at = :anchor_at, next_tick_at = CAST(:next_tick_at AS timestamptz),
    paused_at = CASE WHEN :paused THEN coalesce(s.paused_at, onceonly_now()) END,
    edited = CAST(:edited AS text[]), version = version + 1, updated_at = onceonly_now(), updated_by = :actor
WHERE {_NAMED} AND version = :version AND deleted_at IS NULL
RETURNING {_COLUMNS}
""")


def change(
    schedule: Schedule,
    definition: Definition,
    *,
    anchor_at: datetime,
    next_tick_at: datetime | None,
    paused: bool,
    edited: list[str],
    actor: str,
) -> Statement[Schedule | None]:
    """Another definition for a schedule. None when it is not what it was when it was read."""
    return Statement(
        "schedules.change",
        _CHANGE,
        one_or_none(_schedule),
        {
            **_values(definition),
            "tenant_id": schedule.tenant_id,
            "name": schedule.name,
            "version": schedule.version,
            "anchor_at": anchor_at,
            "next_tick_at": next_tick_at,
            "paused": paused,
            "edited": edited,
            "actor": actor,
        },
    )


# What code has declared stays as a mark, or its next worker would bring it back.
_DELETE = sa.text("""
WITH gone AS (
    DELETE FROM schedules WHERE tenant_id = :tenant_id AND name = :name AND origin = 'api' AND deleted_at IS NULL
    RETURNING name
), marked AS (
    UPDATE schedules SET deleted_at = onceonly_now(), updated_at = onceonly_now(), updated_by = :actor,
        next_tick_at = NULL, version = version + 1
    WHERE tenant_id = :tenant_id AND name = :name AND origin = 'code' AND deleted_at IS NULL
    RETURNING name
), forgotten AS (
    DELETE FROM schedule_ticks
    WHERE tenant_id = :tenant_id AND name IN (SELECT name FROM gone UNION ALL SELECT name FROM marked)
)
SELECT name FROM gone UNION ALL SELECT name FROM marked
""")


def delete(tenant_id: str, name: str, actor: str) -> Statement[bool]:
    """Remove a schedule and its history. Its runs stay. False when there is none of that name."""
    return Statement(
        "schedules.delete",
        _DELETE,
        lambda r: r.first() is not None,
        {"tenant_id": tenant_id, "name": name, "actor": actor},
    )


_DUE = "s.next_tick_at <= onceonly_now() AND s.paused_at IS NULL AND s.deleted_at IS NULL"
_AWAKE = """NOT EXISTS (SELECT FROM unnest(CAST(:resting_tenants AS text[]), CAST(:resting_names AS text[]))
        AS r (tenant_id, name) WHERE r.tenant_id = s.tenant_id AND r.name = s.name)"""

_NAMES = sa.text(f"""
SELECT s.tenant_id, s.name FROM schedules s JOIN tenants t ON t.id = s.tenant_id AND t.disabled_at IS NULL
WHERE {_DUE} AND {_AWAKE}
ORDER BY s.next_tick_at LIMIT :batch
""")


@dataclass(frozen=True, slots=True)
class Name:
    tenant_id: str
    name: str


def _resting(names: list[Name]) -> dict[str, list[str]]:
    return {
        "resting_tenants": [name.tenant_id for name in names],
        "resting_names": [name.name for name in names],
    }


def due(batch: int, resting: list[Name]) -> Statement[list[Name]]:
    """Schedules that have a tick to serve, the most overdue first, without the resting ones."""
    return Statement(
        "schedules.due", _NAMES, many(lambda row: Name(**row)), {"batch": batch, **_resting(resting)}
    )


_NEXT = sa.text(f"""
SELECT extract(epoch FROM s.next_tick_at - onceonly_now())::double precision
FROM schedules s JOIN tenants t ON t.id = s.tenant_id AND t.disabled_at IS NULL
WHERE s.next_tick_at IS NOT NULL AND s.paused_at IS NULL AND s.deleted_at IS NULL AND {_AWAKE}
ORDER BY s.next_tick_at LIMIT 1
""")


def next_due_in_s(resting: list[Name]) -> Statement[float | None]:
    """Seconds until the next tick of all; None when none is in sight."""
    return Statement("schedules.next_due_in_s", _NEXT, lambda r: r.scalar_one_or_none(), _resting(resting))


# Whoever holds the row serves it; others go on to the next schedule.
_TAKE = sa.text(f"""
SELECT {_COLUMNS}, t.plan FROM schedules s JOIN tenants t ON t.id = s.tenant_id AND t.disabled_at IS NULL
WHERE {_NAMED} AND {_DUE}
FOR UPDATE OF s SKIP LOCKED
""")


def take_due(name: Name) -> Statement[tuple[Schedule, Plan] | None]:
    """A due schedule, held until the transaction ends. None when it is not due, or somebody else has it."""
    return Statement(
        "schedules.take_due",
        _TAKE,
        one_or_none(lambda row: (_schedule(row), Plan(row["plan"]))),
        {"tenant_id": name.tenant_id, "name": name.name},
    )


_ADVANCE = sa.text(f"""
UPDATE schedules s SET next_tick_at = CAST(:next_tick_at AS timestamptz),
    last_tick_at = coalesce(CAST(:last_tick_at AS timestamptz), last_tick_at)
WHERE {_NAMED} AND next_tick_at = :expected AND version = :version
""")


def advance(
    schedule: Schedule, *, next_tick_at: datetime | None, last_tick_at: datetime | None
) -> Statement[int]:
    """Move a schedule on from the tick that was read. 0 when it is not there any more."""
    return Statement(
        "schedules.advance",
        _ADVANCE,
        count,
        {
            "tenant_id": schedule.tenant_id,
            "name": schedule.name,
            "expected": schedule.next_tick_at,
            "version": schedule.version,
            "next_tick_at": next_tick_at,
            "last_tick_at": last_tick_at,
        },
    )
