"""Deleting the oldest seals of the audit trail with their rows: only the tables' owner may."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.store.dead import DEAD
from onceonly_jobs.store.statement import Statement, count, many, one_or_none


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to this seal, which has this hash, all was exported and deleted."""

    seal: int
    hash: str


_CHECKPOINT = sa.text("SELECT seal, hash FROM audit_checkpoints ORDER BY seal DESC LIMIT 1")


def checkpoint() -> Statement[Checkpoint | None]:
    """Where the chain begins that is still here; None where nothing was ever pruned."""
    return Statement(
        "audit_pruning.checkpoint", _CHECKPOINT, one_or_none(lambda row: Checkpoint(row["seal"], row["hash"]))
    )


_PERMITTED = sa.text("""
SELECT bool_and(has_table_privilege(name, 'DELETE')) AS permitted
FROM unnest(ARRAY['audit_decisions', 'audit_outcomes', 'audit_seals', 'audit_sealed']) AS name
""")


def permitted() -> Statement[bool]:
    """Whether this role may delete from the trail at all."""
    return Statement("audit_pruning.permitted", _PERMITTED, lambda r: bool(r.scalar_one()))


# The newest seal stays: the next one names its hash.
_LAST_BEFORE = sa.text("""
SELECT coalesce(min(number) - 1, 0) FROM audit_seals
WHERE sealed_at >= coalesce(CAST(:before AS timestamptz), onceonly_now() - make_interval(days => :keep_days))
    OR number = (SELECT max(number) FROM audit_seals)
""")


def last_before(before: datetime | None, keep_days: int) -> Statement[int]:
    """The last of the seals that were all made before a time, or that many days ago; 0 or the checkpoint's where there
    is none."""
    params = {"before": before, "keep_days": keep_days}
    return Statement("audit_pruning.last_before", _LAST_BEFORE, lambda r: int(r.scalar_one()), params)


@dataclass(frozen=True, slots=True)
class Needed:
    """A seal whose rows a run that may still go on refers to."""

    seal: int
    decision_id: int
    key: str


_NEEDED = sa.text(f"""
SELECT s.seal, s.row_id AS decision_id, r.key
FROM runs r JOIN audit_sealed s ON s.kind = 'decision' AND s.row_id IN (r.decision_id, r.concludes_id)
WHERE (r.state IN ('queued', 'in_progress', 'unknown') OR {DEAD}) AND s.seal <= :last
ORDER BY s.seal, s.position LIMIT 1
""")


def first_needed(last: int) -> Statement[Needed | None]:
    """The first of the seals up to one that has a decision whose run has not ended, or is a dead letter."""
    return Statement(
        "audit_pruning.first_needed", _NEEDED, one_or_none(lambda row: Needed(**row)), {"last": last}
    )


@dataclass(frozen=True, slots=True)
class Gone:
    """What was deleted: seals, the list of their rows, and the rows."""

    seals: int
    listed: int
    rows: int
    hash: str | None
    """of the last seal"""


# Versions of policies are history that is shown: they stay, and so does what the seals had to say of them.
_DELETE = sa.text("""
WITH listed AS (
    DELETE FROM audit_sealed WHERE seal BETWEEN :first AND :last AND kind <> 'policy' RETURNING kind, row_id
), decisions AS (
    DELETE FROM audit_decisions d USING listed l WHERE l.kind = 'decision' AND d.id = l.row_id RETURNING 1
), outcomes AS (
    DELETE FROM audit_outcomes o USING listed l WHERE l.kind = 'outcome' AND o.decision_id = l.row_id RETURNING 1
), seals AS (
    DELETE FROM audit_seals WHERE number BETWEEN :first AND :last RETURNING number, hash
)
SELECT (SELECT count(*) FROM seals) AS seals, (SELECT count(*) FROM listed) AS listed,
       (SELECT count(*) FROM decisions) + (SELECT count(*) FROM outcomes) AS rows,
       (SELECT hash FROM seals WHERE number = :last) AS hash
""")


def delete(first: int, last: int) -> Statement[Gone]:
    """Delete some seals and the decisions and outcomes that they list."""
    return Statement(
        "audit_pruning.delete",
        _DELETE,
        lambda r: Gone(**r.mappings().one()),
        {"first": first, "last": last},
    )


_ADD = sa.text("""
INSERT INTO audit_checkpoints (seal, hash, rows_pruned, export_sha256)
VALUES (:seal, :hash, :rows, :export_sha256)
""")


def add_checkpoint(seal: int, hashed: str, rows: int, export_sha256: str) -> Statement[int]:
    """Say where verification goes on, in the transaction that deletes what came before."""
    params = {"seal": seal, "hash": hashed, "rows": rows, "export_sha256": export_sha256}
    return Statement("audit_pruning.add_checkpoint", _ADD, count, params)


_LEFT = sa.text("""
SELECT number AS seal, 'seal' AS kind, number AS row_id FROM audit_seals WHERE number <= :seal
UNION ALL
SELECT seal, kind, row_id FROM audit_sealed WHERE seal <= :seal AND kind <> 'policy'
ORDER BY seal LIMIT :limit
""")


def left_behind(seal: int, limit: int) -> Statement[list[tuple[int, str, int]]]:
    """Seal, kind and id of what is there though it was pruned: nothing, if nobody put it there."""
    return Statement(
        "audit_pruning.left_behind",
        _LEFT,
        many(lambda row: (row["seal"], row["kind"], row["row_id"])),
        {"seal": seal, "limit": limit},
    )


_KEPT_POLICIES = sa.text("""
SELECT s.row_id, s.row_hash, to_jsonb(r) || jsonb_build_object('policy', r.policy::text) AS row
FROM audit_sealed s LEFT JOIN policy_versions r ON r.id = s.row_id
WHERE s.kind = 'policy' AND s.seal <= :seal ORDER BY s.row_id
""")


def kept_policies(seal: int) -> Statement[list[tuple[int, str, dict[str, Any] | None]]]:
    """Id, hash and row, None where it is gone, of the policy versions that pruned seals list."""
    return Statement(
        "audit_pruning.kept_policies",
        _KEPT_POLICIES,
        many(lambda row: (row["row_id"], row["row_hash"], row["row"])),
        {"seal": seal},
    )
