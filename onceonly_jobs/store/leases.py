"""What the holder of a lease may do with it: extend, complete, fail, cancel.

Each statement carries the lease in its WHERE clause; no row back means that the caller no longer holds it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.store.governance import AGENTS_HELD, agents_first
from onceonly_jobs.store.rows import FINISH, RUN_COLUMNS, finished, to_run
from onceonly_jobs.store.statement import Statement, one_or_none
from onceonly_jobs.store.stopping import blocked_decision, gate, stopping

_HELD = "tenant_id = :tenant_id AND key = :key AND lease_id = :lease_id"

_NOW_PLUS_TTL = "onceonly_now() + make_interval(secs => coalesce(CAST(:ttl_s AS integer), lease_ttl_s))"

# A job's own limit, which no caller's heartbeat moves. least() ignores the null of a job without one.
_JOB_LIMIT = "started_at + make_interval(secs => time_limit_s)"

_OPEN = f"{_HELD} AND state IN ('queued', 'in_progress')"

_GOVERNED = "owner = 'server' AND agent_id IS NOT NULL"

# A running job's time limit moves; a queued one's is counted from its claim, so only its length changes.
_LONGER = f"""
    version = version + 1, lease_ttl_s = coalesce(CAST(:ttl_s AS integer), lease_ttl_s),
    lease_until_at = CASE owner WHEN 'caller' THEN {_NOW_PLUS_TTL} ELSE lease_until_at END,
    deadline_at = CASE WHEN owner = 'server' AND state = 'in_progress'
        THEN least({_NOW_PLUS_TTL}, {_JOB_LIMIT}) ELSE deadline_at END"""

_EXTEND = sa.text(f"""
UPDATE runs SET {_LONGER} WHERE {_OPEN} AND NOT ({_GOVERNED})
RETURNING {RUN_COLUMNS}
""")


def extend(tenant_id: str, key: str, lease_id: str, ttl_s: int | None) -> Statement[Run | None]:
    """Set the deadline to now + ttl_s: of the lease, or for a server-run job of its time limit.

    None keeps the length it has. A run under an agent's policy is left to `extend_governed`.
    """
    return Statement(
        "leases.extend",
        _EXTEND,
        one_or_none(to_run),
        {"tenant_id": tenant_id, "key": key, "lease_id": lease_id, "ttl_s": ttl_s},
    )


_EXTEND_GOVERNED = sa.text(f"""
WITH gate AS ({gate(f"SELECT * FROM runs WHERE {_OPEN} AND {_GOVERNED}", gives_back=True)}
), extended AS (
    UPDATE runs SET {_LONGER}
    WHERE {_OPEN} AND {_GOVERNED} AND NOT EXISTS (SELECT FROM gate WHERE code <> 'ok')
    RETURNING {RUN_COLUMNS}
), before AS (
    SELECT id, state FROM runs
    WHERE {_OPEN} AND {_GOVERNED} AND EXISTS (SELECT FROM gate WHERE code <> 'ok') FOR UPDATE
), {stopping("before", "(SELECT code FROM gate)", "'the agent''s permission was withdrawn during the call'")}
, decided AS ({blocked_decision("stopped, gate")})
SELECT * FROM extended
""")


def extend_governed(
    tenant_id: str, key: str, lease_id: str, ttl_s: int | None, retention_s: int
) -> Statement[Run | None]:
    """`extend` for a run under an agent's policy. One that the agent may not go on with ends here instead."""
    return Statement(
        "leases.extend_governed",
        _EXTEND_GOVERNED,
        one_or_none(to_run),
        {
            "tenant_id": tenant_id,
            "key": key,
            "lease_id": lease_id,
            "ttl_s": ttl_s,
            "retention_s": retention_s,
        },
    )


_COMPLETE = sa.text(f"""
WITH done AS (
    UPDATE runs SET state = 'completed', result = CAST(:result AS json),
        result_hash = CAST(:result_hash AS text), {FINISH}
    WHERE {_HELD} AND owner = 'caller' AND state = 'in_progress'
    RETURNING *
), {finished("done", told=None)}
SELECT {RUN_COLUMNS} FROM done
""")


def complete(
    tenant_id: str,
    key: str,
    lease_id: str,
    result: dict[str, Any] | None,
    result_hash: str | None,
    retention_s: int,
) -> Statement[Run | None]:
    """Finish a caller-owned lease with its result. An expired lease that nobody took over still counts."""
    return Statement(
        "leases.complete",
        _COMPLETE,
        one_or_none(to_run),
        {
            "tenant_id": tenant_id,
            "key": key,
            "lease_id": lease_id,
            "result": None if result is None else compact_json(result).decode(),
            "result_hash": result_hash,
            "retention_s": retention_s,
        },
    )


_FAIL = sa.text(f"""
WITH done AS (
    UPDATE runs SET state = 'failed', error_code = :error_code, error_hash = CAST(:error_hash AS text), {FINISH}
    WHERE {_HELD} AND owner = 'caller' AND state = 'in_progress'
    RETURNING *
), {finished("done")}
SELECT {RUN_COLUMNS} FROM done
""")


def fail(
    tenant_id: str, key: str, lease_id: str, error_code: str, error_hash: str | None, retention_s: int
) -> Statement[Run | None]:
    """Finish a caller-owned lease as failed."""
    return Statement(
        "leases.fail",
        _FAIL,
        one_or_none(to_run),
        {
            "tenant_id": tenant_id,
            "key": key,
            "lease_id": lease_id,
            "error_code": error_code,
            "error_hash": error_hash,
            "retention_s": retention_s,
        },
    )


# A running job keeps its worker's claim: the key is free again only when that ends.
_CANCEL = sa.text(f"""
WITH {agents_first(f"SELECT tenant_id, agent_id FROM runs WHERE {_OPEN} AND {_GOVERNED} AND attempt = 0")}, done AS (
    UPDATE runs SET state = 'cancelled', error_code = 'cancelled', error_message = CAST(:reason AS text),
        lease_until_at = CASE WHEN owner = 'server' AND state = 'in_progress' THEN lease_until_at END, {FINISH}
    WHERE {_OPEN} AND {AGENTS_HELD}
    RETURNING *
), {finished("done", given_back="attempt = 0", told=None)}
SELECT {RUN_COLUMNS} FROM done
""")


def cancel(
    tenant_id: str, key: str, lease_id: str, reason: str | None, retention_s: int
) -> Statement[Run | None]:
    """Give a lease or a server-run job up without an outcome."""
    return Statement(
        "leases.cancel",
        _CANCEL,
        one_or_none(to_run),
        {
            "tenant_id": tenant_id,
            "key": key,
            "lease_id": lease_id,
            "reason": reason,
            "retention_s": retention_s,
        },
    )
