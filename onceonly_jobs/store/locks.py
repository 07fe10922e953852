"""check-lock: the first caller in a window wins, everybody else is a duplicate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.store.statement import Statement, one_or_none
from onceonly_jobs.store.usage import counting, slot

CALL_ID_PREFIX = "call_"
"""A request id that begins so is one call's own, however often it is sent: the winner's repeat wins again. Any other
may be a trace's, which several calls share."""


@dataclass(frozen=True, slots=True)
class LockAnswer:
    status: Literal["locked", "duplicate", "mismatch"]
    ttl_s: int
    first_seen_at: datetime
    at: datetime
    """The database's clock."""


_CHECK = sa.text(f"""
WITH won AS (
    INSERT INTO locks AS l
        (tenant_id, key, ttl_s, first_seen_at, locked_until_at, metadata, fingerprint, request_id)
    VALUES
        (:tenant_id, :key, CAST(:ttl_s AS integer), onceonly_now(),
         onceonly_now() + make_interval(secs => CAST(:ttl_s AS integer)),
         CAST(:metadata AS json), CAST(:fingerprint AS text), CAST(:request_id AS text))
    ON CONFLICT (tenant_id, key) DO UPDATE SET
        ttl_s = excluded.ttl_s, first_seen_at = excluded.first_seen_at,
        locked_until_at = excluded.locked_until_at, metadata = excluded.metadata,
        fingerprint = excluded.fingerprint, request_id = excluded.request_id
    WHERE l.locked_until_at <= onceonly_now()
    RETURNING l.ttl_s, l.first_seen_at
), answer AS (
    SELECT 'locked' AS status, ttl_s, first_seen_at FROM won
    UNION ALL
    SELECT CASE WHEN fingerprint <> CAST(:fingerprint AS text) THEN 'mismatch'
                WHEN request_id = CAST(:request_id AS text) AND starts_with(request_id, '{CALL_ID_PREFIX}')
                THEN 'locked'
                ELSE 'duplicate' END,
           ttl_s, first_seen_at
    FROM locks
    WHERE tenant_id = :tenant_id AND key = :key AND locked_until_at > onceonly_now()
      AND NOT EXISTS (SELECT FROM won)
), counted AS ({counting(Kind.MAKE, "answer", usage="status = 'duplicate'")}
), fed AS (
    INSERT INTO feed_events (tenant_id, type, kind, key, status)
    SELECT :tenant_id, 'duplicate', 'make', :key, 'duplicate' FROM answer WHERE status = 'duplicate'
)
SELECT status, ttl_s, first_seen_at, onceonly_now() AS at FROM answer
""")


def check(
    tenant_id: str,
    key: str,
    ttl_s: int,
    metadata: dict[str, Any] | None,
    fingerprint: str | None,
    request_id: str | None,
) -> Statement[LockAnswer | None]:
    """Take the lock if it is free or expired, and count the request.

    None when another transaction took the lock after this statement's snapshot: nothing was changed or
    counted, and asking again sees that transaction's row.
    """
    return Statement(
        "locks.check",
        _CHECK,
        one_or_none(lambda row: LockAnswer(**row)),
        {
            "tenant_id": tenant_id,
            "key": key,
            "ttl_s": ttl_s,
            "metadata": None if metadata is None else compact_json(metadata).decode(),
            "fingerprint": fingerprint,
            "request_id": request_id,
            "slot": slot(),
        },
    )
