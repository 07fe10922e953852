"""The audit trail: what was decided, what came of it, who changed the policies, and the seals over all that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.store.statement import Statement, count, many, nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A decision and its outcome; the outcome is None while the run goes on."""

    decision_id: int
    at: datetime
    actor: str | None
    agent_id: str | None
    tool: str
    allowed: bool
    decision: str
    policy_reason: str
    risk_level: str
    outcome: str | None
    error_code: str | None
    latency_ms: int | None


_OF_RUN = sa.text("""
SELECT d.id AS decision_id, d.at, d.actor, d.agent_id, d.tool, d.allowed, d.decision, d.policy_reason,
       d.risk_level, o.outcome, o.error_code, o.latency_ms
FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
WHERE d.tenant_id = :tenant_id AND d.run_key = :key
ORDER BY d.id DESC
""")


def of_run(tenant_id: str, key: str) -> Statement[list[AuditEntry]]:
    """Every decision about a run, newest first, each with its outcome."""
    return Statement(
        "audit.of_run", _OF_RUN, many(lambda row: AuditEntry(**row)), {"tenant_id": tenant_id, "key": key}
    )


SEALER_LOCK = 0x0CE0_172
"""The advisory lock of whoever seals; any number that nothing else on this database uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealState:
    """Where the chain ends, and which transactions Postgres knows of. Times are text, as rows show them."""

    number: int
    hash: str
    horizon: int
    cluster_sealed: int
    cluster: int
    oldest: int
    next: int
    now: str

    @property
    def same_cluster(self) -> bool:
        """Whether the chain's horizon means this Postgres' transactions: after a restore it does not."""
        return self.cluster == self.cluster_sealed


@dataclass(frozen=True, slots=True)
class UnsealedRow:
    """A row that no seal lists, its columns as Postgres shows them."""

    kind: str
    row_id: int
    transaction_id: int
    row: dict[str, Any]


# Times of a row are hashed as text, and Postgres shows them in the session's zone.
_BEGIN_SEALING = sa.text(
    "SELECT set_config('TimeZone', 'UTC', true), pg_try_advisory_xact_lock(:lock) AS locked"
)
_IN_UTC = sa.text("SELECT set_config('TimeZone', 'UTC', true)")

_SEAL_STATE = sa.text("""
SELECT coalesce(s.number, 0) AS number, coalesce(s.hash, repeat('0', 64)) AS hash,
       coalesce(s.horizon, 0) AS horizon, coalesce(s.cluster, 0) AS cluster_sealed,
       (SELECT system_identifier FROM pg_control_system()) AS cluster,
       CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS oldest,
       CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next,
       to_jsonb(onceonly_now()) #>> '{}' AS now
FROM (VALUES (1)) AS one LEFT JOIN (SELECT * FROM audit_seals ORDER BY number DESC LIMIT 1) s ON true
""")

_ID = {
    "decision": ("audit_decisions", "id"),
    "outcome": ("audit_outcomes", "decision_id"),
    "policy": ("policy_versions", "id"),
}

# A row `r` as it is hashed. A policy is hashed as text: its numbers are exact there, and nowhere else.
_AS_HASHED = dict.fromkeys(_ID, "to_jsonb(r)") | {
    "policy": "to_jsonb(r) || jsonb_build_object('policy', r.policy::text)"
}


def _unsealed(kind: str, where: str) -> str:
    table, row_id = _ID[kind]
    return f"""
SELECT '{kind}' AS kind, r.{row_id} AS row_id, r.transaction_id, {_AS_HASHED[kind]} AS row FROM {table} r
WHERE {where} AND NOT EXISTS (SELECT FROM audit_sealed s WHERE s.kind = '{kind}' AND s.row_id = r.{row_id})
"""


def _every(where: str) -> sa.TextClause:
    """The oldest unsealed rows of every kind, each kind by an index of its own."""
    parts = (
        f"({_unsealed(kind, where)} ORDER BY r.transaction_id, r.{row_id} LIMIT :limit)"
        for kind, (_, row_id) in _ID.items()
    )
    return sa.text(f"{' UNION ALL '.join(parts)} ORDER BY transaction_id, kind, row_id LIMIT :limit")


_SINCE_HORIZON = _every("r.transaction_id >= :horizon AND r.transaction_id < :next")
_EVERYTHING = _every("true")
# What is yet to come is judged by this statement's own snapshot: since the state was read, others have committed.
_TO_COME = "CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)"
_INSERTED = _every(f"(r.transaction_id < :horizon OR r.transaction_id >= {_TO_COME})")

_COUNT_UNSEALED = sa.text(
    "SELECT "
    + " + ".join(f"(SELECT count(*) FROM ({_unsealed(kind, 'true')}) AS {kind})" for kind in _ID)
    + " AS n"
)

_ADD_SEAL = sa.text("""
INSERT INTO audit_seals (number, previous, hash, row_count, sealed_at, horizon, cluster)
VALUES (:number, :previous, :hash, :row_count, CAST(:sealed_at AS timestamptz), :horizon, :cluster)
""")

_ADD_SEALED = sa.text("""
INSERT INTO audit_sealed (kind, row_id, seal, position, row_hash)
SELECT listed.kind, listed.row_id, :seal, listed.position, listed.row_hash
FROM unnest(CAST(:kinds AS text[]), CAST(:row_ids AS bigint[]), CAST(:row_hashes AS text[]))
     WITH ORDINALITY AS listed (kind, row_id, row_hash, position)
""")

_SEALS = sa.text("""
SELECT to_jsonb(s) AS seal FROM audit_seals s WHERE s.number > :after ORDER BY s.number LIMIT :limit
""")

_ROW_NOW = " ".join(
    f"WHEN '{kind}' THEN (SELECT {_AS_HASHED[kind]} FROM {table} r WHERE r.{row_id} = s.row_id)"
    for kind, (table, row_id) in _ID.items()
)

_SEALED = sa.text(f"""
SELECT s.seal, s.kind, s.row_id, s.row_hash, CASE s.kind {_ROW_NOW} END AS row
FROM audit_sealed s WHERE s.seal BETWEEN :first AND :last ORDER BY s.seal, s.position
""")

_ORPHANS = sa.text("""
SELECT s.seal, s.kind, s.row_id FROM audit_sealed s
WHERE NOT EXISTS (SELECT FROM audit_seals a WHERE a.number = s.seal)
    AND s.seal > (SELECT coalesce(max(seal), 0) FROM audit_checkpoints) ORDER BY s.seal, s.position LIMIT :limit
""")


def begin_sealing() -> Statement[bool]:
    """Whether this transaction may seal: False while another one does."""
    return Statement(
        "audit.begin_sealing", _BEGIN_SEALING, lambda r: bool(r.one().locked), {"lock": SEALER_LOCK}
    )


def in_utc() -> Statement[None]:
    """Show times in UTC for the rest of the transaction, as they were when they were hashed."""
    return Statement("audit.in_utc", _IN_UTC, nothing)


def seal_state() -> Statement[SealState]:
    return Statement("audit.seal_state", _SEAL_STATE, lambda r: SealState(**r.mappings().one()))


def unsealed(state: SealState, limit: int) -> Statement[list[UnsealedRow]]:
    """Committed rows that no seal lists, in the order of sealing.

    A row's transaction may be older than the chain's end and commit only now: hence the horizon, below which
    no transaction was running, and the anti-join above it. In another cluster the numbers mean nothing.
    """
    query = _SINCE_HORIZON if state.same_cluster else _EVERYTHING
    return _rows("audit.unsealed", query, state, limit)


def inserted(state: SealState, limit: int) -> Statement[list[UnsealedRow]]:
    """Rows that no seal lists though their transaction claims to be one of which all is sealed, or to come."""
    return _rows("audit.inserted", _INSERTED, state, limit)


def _rows(name: str, query: sa.TextClause, state: SealState, limit: int) -> Statement[list[UnsealedRow]]:
    bounds = {"horizon": state.horizon, "next": state.next} if query is not _EVERYTHING else {}
    return Statement(name, query, many(lambda row: UnsealedRow(**row)), {**bounds, "limit": limit})


def count_unsealed() -> Statement[int]:
    return Statement("audit.count_unsealed", _COUNT_UNSEALED, lambda r: int(r.one().n))


def add_seal(seal: dict[str, Any]) -> Statement[int]:
    """Put a seal at the chain's end. Its place is taken at most once."""
    return Statement("audit.add_seal", _ADD_SEAL, count, {k: v for k, v in seal.items() if k != "rows"})


def add_sealed(number: int, rows: list[tuple[str, int, str]]) -> Statement[int]:
    """List a seal's rows, in their order."""
    kinds, row_ids, row_hashes = (list(column) for column in zip(*rows, strict=True))
    params = {"seal": number, "kinds": kinds, "row_ids": row_ids, "row_hashes": row_hashes}
    return Statement("audit.add_sealed", _ADD_SEALED, count, params)


def seals(after: int, limit: int) -> Statement[list[dict[str, Any]]]:
    """The seals that follow one, with their columns as Postgres shows them."""
    return Statement(
        "audit.seals", _SEALS, many(lambda row: dict(row["seal"])), {"after": after, "limit": limit}
    )


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A place in a seal, and the row that is there now; None where it is gone."""

    seal: int
    kind: str
    row_id: int
    row_hash: str
    row: dict[str, Any] | None


def sealed(first: int, last: int) -> Statement[list[SealedRow]]:
    """The rows of some seals, in their order."""
    return Statement(
        "audit.sealed", _SEALED, many(lambda row: SealedRow(**row)), {"first": first, "last": last}
    )


def orphans(limit: int) -> Statement[list[tuple[int, str, int]]]:
    """Seal, kind and id of rows that are listed for a seal that is not there."""
    return Statement(
        "audit.orphans",
        _ORPHANS,
        many(lambda row: (row["seal"], row["kind"], row["row_id"])),
        {"limit": limit},
    )
