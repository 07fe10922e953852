"""Many stored locks and runs: copies, made by SQL, of a lock and a run that the system itself has made."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
from psycopg import sql

BATCH = 100_000
BETWEEN_S = 0.01
"""So far apart in time are two copies."""
AGENTS = 1000
PER_RUN_BYTES = 4096
"""About so much disk a stored run takes with its events and audit rows, and a lock; for the estimate before filling."""

NUMBERED = {
    "key": "{prefix} || n",
    "run_id": "{prefix} || n",
    "run_key": "{prefix} || n",
    "agent_id": "'agent-' || mod(n, {agents})",
    "decision_id": "{base} + n",
    "row_id": "{base} + n",
    "seal": "{base} + n",
    "lease_id": "'lease_' || md5(n::text)",
}
"""What is different in each copy, by the name of the column."""

TABLES = {
    "runs": "key = %(key)s",
    "run_events": "run_id = %(key)s",
    "timelines": "run_id = %(key)s",
    "feed_events": "key = %(key)s",
    "audit_decisions": "id = %(decision)s",
    "audit_outcomes": "decision_id = %(decision)s",
    "audit_sealed": "row_id = %(decision)s",
}
"""Where the rows of the sample run are."""


class Filler:
    """Copies a sample within one database."""

    def __init__(self, url: str, run_key: str, lock_key: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        row = self._connection.execute("SELECT decision_id FROM runs WHERE key = %s", [run_key]).fetchone()
        assert row is not None
        self._run = {"key": run_key, "decision": row[0]}
        self._lock_key = lock_key

    def fill(self, count: int, prefix: str) -> float:
        """This many runs and locks; the seconds that it took. The statistics are fresh afterwards."""
        started = time.monotonic()
        base = self._reserve(count)
        for first, last in _batches(count):
            for table, where in TABLES.items():
                self._copy(table, where, self._run, first, last, count, prefix, base)
            self._copy("locks", "key = %(key)s", {"key": self._lock_key}, first, last, count, prefix, base)
        self._connection.execute("VACUUM ANALYZE")
        self._connection.execute("CHECKPOINT")
        return time.monotonic() - started

    def _reserve(self, count: int) -> int:
        """Ids of decisions that nothing else is given."""
        row = self._connection.execute("SELECT nextval('audit_decisions_id_seq')").fetchone()
        assert row is not None
        self._connection.execute("SELECT setval('audit_decisions_id_seq', %s)", [row[0] + count + 1])
        return int(row[0])

    def _copy(
        self,
        table: str,
        where: str,
        values: dict[str, object],
        first: int,
        last: int,
        count: int,
        prefix: str,
        base: int,
    ) -> None:
        columns = self._columns(table)
        made = {name: self._made(table, name, kind, count, prefix, base) for name, kind in columns.items()}
        query = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} s, generate_series({}, {}) n WHERE {}").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, made)),
            sql.SQL(", ").join(sql.SQL(text) for text in made.values()),
            sql.Identifier(table),
            sql.Literal(first),
            sql.Literal(last),
            sql.SQL(where),
        )
        self._connection.execute(query, values)

    def _columns(self, table: str) -> dict[str, str]:
        """Name and type of those that a copy has to give."""
        rows = self._connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' "
            "AND table_name = %s AND (is_identity = 'NO' OR identity_generation = 'BY DEFAULT')",
            [table],
        ).fetchall()
        return dict(rows)

    def _made(self, table: str, name: str, kind: str, count: int, prefix: str, base: int) -> str:
        if table == "audit_decisions" and name == "id":
            return f"{base} + n"
        if name in NUMBERED and not (name == "agent_id" and table == "locks"):
            text = NUMBERED[name].format(prefix=f"'{prefix}'", agents=AGENTS, base=base)
            return f"CASE WHEN s.{name} IS NULL THEN NULL ELSE {text} END"
        if kind == "timestamp with time zone":
            return f"s.{name} - make_interval(secs => ({count} - n) * {BETWEEN_S})"
        return f"s.{name}"

    def size(self) -> int:
        """Bytes of the database."""
        row = self._connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        self._connection.close()


def _batches(count: int) -> Iterator[tuple[int, int]]:
    for first in range(1, count + 1, BATCH):
        yield first, min(first + BATCH - 1, count)
