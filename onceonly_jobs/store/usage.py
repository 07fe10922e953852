"""Monthly metering: counters per UTC day and slot, and the single row that makes a hard cap exact."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.store.statement import Statement, many, nothing

SLOTS = 8

THIS_MONTH = "date_trunc('month', onceonly_now() AT TIME ZONE 'UTC')::date"


def month_usage(tenant_id: str, kind: Kind | None = None) -> str:
    """SQL for what a tenant has used in the current month. Without a kind, that is the parameter `kind`."""
    counted = ":kind" if kind is None else f"'{kind}'"
    return f"""
(SELECT coalesce(sum(u.usage), 0)::bigint FROM usage_counters u
 WHERE u.tenant_id = {tenant_id} AND u.kind = {counted} AND u.day >= {THIS_MONTH})
"""


def counting(kind: Kind, source: str, *, usage: str, charged: str = "0", polling: str = "0") -> str:
    """A CTE body that counts one request per row of `source`; the other arguments are SQL over its columns.

    No row, no count: a statement that has to be asked again is counted once. The order keeps concurrent statements
    from deadlocking.
    """
    return f"""
    INSERT INTO usage_counters AS c
        (tenant_id, kind, day, slot, usage, requests_total, charged_total, polling_total)
    SELECT tenant_id, '{kind}', (onceonly_now() AT TIME ZONE 'UTC')::date, CAST(:slot AS smallint),
           sum(({usage})::int), count(*), sum(({charged})::int), sum(({polling})::int)
    FROM {source} GROUP BY tenant_id ORDER BY tenant_id
    ON CONFLICT (tenant_id, kind, day, slot) DO UPDATE SET
        usage = c.usage + excluded.usage, requests_total = c.requests_total + excluded.requests_total,
        charged_total = c.charged_total + excluded.charged_total,
        polling_total = c.polling_total + excluded.polling_total
    """


def slot() -> int:
    """Which of the counter rows this request adds to. Any will do."""
    return random.randrange(SLOTS)  # noqa: S311


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    usage: int = 0
    requests_total: int = 0
    blocked_total: int = 0
    charged_total: int = 0
    polling_total: int = 0


_COUNTERS = "usage, requests_total, blocked_total, charged_total, polling_total"
_SUMS = ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in _COUNTERS.split(", "))


def _counters(row: Any) -> Counters:
    return Counters(**{name: row[name] for name in _COUNTERS.split(", ")})


_MONTH = sa.text(f"""
SELECT kinds.kind, to_char({THIS_MONTH}, 'YYYY-MM') AS month, {_SUMS}
FROM (VALUES ('make'), ('ai')) AS kinds (kind)
LEFT JOIN usage_counters u ON u.kind = kinds.kind AND u.tenant_id = :tenant_id AND u.day >= {THIS_MONTH}
GROUP BY kinds.kind
""")


def month(tenant_id: str) -> Statement[tuple[str, dict[Kind, Counters]]]:
    """The current UTC month as YYYY-MM, and its counters by kind."""

    def read(result: sa.CursorResult[Any]) -> tuple[str, dict[Kind, Counters]]:
        rows = result.mappings().all()
        return rows[0]["month"], {Kind(row["kind"]): _counters(row) for row in rows}

    return Statement("usage.month", _MONTH, read, {"tenant_id": tenant_id})


_DAYS = sa.text(f"""
SELECT day, kind, {_SUMS} FROM usage_counters
WHERE tenant_id = :tenant_id AND day BETWEEN :from_day AND :to_day
GROUP BY day, kind ORDER BY day
""")


def days(tenant_id: str, from_day: date, to_day: date) -> Statement[list[tuple[date, Kind, Counters]]]:
    """Counters of each UTC day that has any, both ends included."""
    return Statement(
        "usage.days",
        _DAYS,
        many(lambda row: (row["day"], Kind(row["kind"]), _counters(row))),
        {"tenant_id": tenant_id, "from_day": from_day, "to_day": to_day},
    )


_ALL_TIME = sa.text(f"SELECT {_SUMS} FROM usage_counters WHERE tenant_id = :tenant_id")


def all_time(tenant_id: str) -> Statement[Counters]:
    """Counters of both kinds together since the tenant began."""
    return Statement(
        "usage.all_time", _ALL_TIME, lambda r: _counters(r.mappings().one()), {"tenant_id": tenant_id}
    )


# The counters may know of more: what was used on a plan that does not stop. They may also know of less, since
# they are read before the row is locked; then the row is right.
_LOCK_CAP = sa.text(f"""
INSERT INTO usage_caps AS c (tenant_id, kind, month, usage)
VALUES (:tenant_id, :kind, {THIS_MONTH}, {month_usage(":tenant_id")})
ON CONFLICT (tenant_id, kind, month) DO UPDATE SET usage = greatest(c.usage, excluded.usage)
RETURNING c.usage
""")


def lock_cap(tenant_id: str, kind: Kind) -> Statement[int]:
    """This month's exact usage, with the row locked until the transaction ends."""
    return Statement(
        "usage.lock_cap", _LOCK_CAP, lambda r: int(r.scalar_one()), {"tenant_id": tenant_id, "kind": kind}
    )


_RAISE_CAP = sa.text(f"""
UPDATE usage_caps SET usage = usage + 1
WHERE tenant_id = :tenant_id AND kind = :kind AND month = {THIS_MONTH}
""")


def raise_cap(tenant_id: str, kind: Kind) -> Statement[None]:
    """One more unit used up; only after lock_cap in the same transaction."""
    return Statement("usage.raise_cap", _RAISE_CAP, nothing, {"tenant_id": tenant_id, "kind": kind})


_BLOCKED = sa.text("""
WITH counted AS (
    INSERT INTO usage_counters AS c (tenant_id, kind, day, slot, requests_total, blocked_total)
    VALUES (:tenant_id, :kind, (onceonly_now() AT TIME ZONE 'UTC')::date, CAST(:slot AS smallint), 1, 1)
    ON CONFLICT (tenant_id, kind, day, slot) DO UPDATE SET
        requests_total = c.requests_total + 1, blocked_total = c.blocked_total + 1
)
INSERT INTO feed_events (tenant_id, type, kind, key, status, message)
VALUES (:tenant_id, 'limit', :kind, :key, 'blocked', 'monthly plan limit reached')
""")


def count_blocked(tenant_id: str, kind: Kind, key: str) -> Statement[None]:
    """A request that the monthly limit refused, counted and shown in the feed."""
    return Statement(
        "usage.count_blocked",
        _BLOCKED,
        nothing,
        {"tenant_id": tenant_id, "kind": kind, "key": key, "slot": slot()},
    )
