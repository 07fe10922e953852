"""check-lock: the first caller in a window wins, everybody else is a duplicate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.store.account import VALID_CALLERS, Caller, Vouched
from onceonly_jobs.store.rowset import numbered, to_rows
from onceonly_jobs.store.statement import Statement
from onceonly_jobs.store.usage import counting, slot

CALL_ID_PREFIX = "call_"
"""A request id that begins so is one call's own, however often it is sent: the winner's repeat wins again. Any other
may be a trace's, which several calls share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A key that somebody wants to lock."""

    tenant_id: str
    key: str
    ttl_s: int
    metadata: dict[str, Any] | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    vouched_for: Caller | None = None
    """Who asks, as was known a moment ago: the check is only made if that still holds."""


@dataclass(frozen=True, slots=True)
class LockAnswer:
    status: Literal["locked", "duplicate", "mismatch"]
    ttl_s: int
    first_seen_at: datetime
    at: datetime
    """The database's clock."""


_CHECK = sa.text(f"""
WITH asked AS MATERIALIZED (
    SELECT a.* FROM json_to_recordset(CAST(:checks AS json)) AS a (
        n integer, tenant_id text, key text, ttl_s integer, metadata json, fingerprint text, request_id text,
        caller integer)
    WHERE a.caller IS NULL OR a.caller IN ({VALID_CALLERS})
), won AS (
    INSERT INTO locks AS l
        (tenant_id, key, ttl_s, first_seen_at, locked_until_at, metadata, fingerprint, request_id)
    SELECT tenant_id, key, ttl_s, onceonly_now(), onceonly_now() + make_interval(secs => ttl_s),
           metadata, fingerprint, request_id
    FROM asked ORDER BY tenant_id, key
    ON CONFLICT (tenant_id, key) DO UPDATE SET
        ttl_s = excluded.ttl_s, first_seen_at = excluded.first_seen_at,
        locked_until_at = excluded.locked_until_at, metadata = excluded.metadata,
        fingerprint = excluded.fingerprint, request_id = excluded.request_id
    WHERE l.locked_until_at <= onceonly_now()
    RETURNING l.tenant_id, l.key, l.ttl_s, l.first_seen_at
), answer AS (
    SELECT a.n, a.tenant_id, a.key, coalesce(w.ttl_s, l.ttl_s) AS ttl_s,
           coalesce(w.first_seen_at, l.first_seen_at) AS first_seen_at,
           CASE WHEN w.key IS NOT NULL THEN 'locked'
                WHEN l.fingerprint <> a.fingerprint THEN 'mismatch'
                WHEN l.request_id = a.request_id AND starts_with(l.request_id, '{CALL_ID_PREFIX}') THEN 'locked'
                ELSE 'duplicate' END AS status
    FROM asked a LEFT JOIN won w ON w.tenant_id = a.tenant_id AND w.key = a.key
    LEFT JOIN LATERAL (
        SELECT * FROM locks l
        WHERE l.tenant_id = a.tenant_id AND l.key = a.key AND l.locked_until_at > onceonly_now() AND w.key IS NULL
        LIMIT 1
    ) l ON true
    WHERE w.key IS NOT NULL OR l.key IS NOT NULL
), counted AS ({counting(Kind.MAKE, "answer", usage="status = 'duplicate'")}
), fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status)
    SELECT tenant_id, 'duplicate', 'make', key, 'duplicate' FROM answer WHERE status = 'duplicate' ORDER BY n
)
SELECT n, status, ttl_s, first_seen_at, onceonly_now() AS at FROM answer
""")


def check(checks: Sequence[Check]) -> Statement[list[LockAnswer | None]]:
    """Take each lock that is free or expired, and count the requests. No two may be for the same key.

    None for one where another transaction took the lock after this statement's snapshot, or whose caller is no
    longer as was vouched for: nothing was changed or counted, and asking again sees how it is.
    """
    callers = Vouched()
    fields = ("tenant_id", "key", "ttl_s", "metadata", "fingerprint", "request_id")
    rows = [
        {name: getattr(one, name) for name in fields} | {"caller": callers.number_of(one.vouched_for)}
        for one in checks
    ]
    return Statement(
        "locks.check",
        _CHECK,
        numbered(
            len(rows), lambda row: LockAnswer(row["status"], row["ttl_s"], row["first_seen_at"], row["at"])
        ),
        {"checks": to_rows(rows), "callers": str(callers), "slot": slot()},
    )
