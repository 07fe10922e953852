"""How the schema is changed while a version serves: one migrator at a time, no lock waited for that traffic needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

ADVISORY_LOCK = 0x0CE0_171  # any number that nothing else on this database uses
LOCK_TIMEOUT = "1s"
"""Whoever waits for a table's lock holds up all that come after; so no step waits for longer."""
STATEMENT_TIMEOUT = "60s"
_LOOK_AGAIN_S = 0.1


def wait_until_alone(connection: sa.Connection) -> None:
    """Wait until no other migrator is at work, and keep others out until the connection is closed.

    Asks again and again: one that waited inside a statement would hold a snapshot meanwhile, which an index that
    the other one builds concurrently waits for. The lock is the session's, so it outlives each transaction;
    behind a pooler that hands out transactions it would not.
    """
    lock = sa.text("SELECT pg_try_advisory_lock(:lock)")
    while not connection.execute(lock, {"lock": ADVISORY_LOCK}).scalar_one():
        connection.rollback()
        time.sleep(_LOOK_AGAIN_S)
    connection.commit()


def set_timeouts(
    connection: sa.Connection, lock: str = LOCK_TIMEOUT, statement: str = STATEMENT_TIMEOUT
) -> None:
    """Bound, for the session, how long a statement waits for a lock, and how long it takes; 0 is no bound."""
    connection.execute(sa.text(f"SET lock_timeout = '{lock}'"))
    connection.execute(sa.text(f"SET statement_timeout = '{statement}'"))


def held_up(error: DBAPIError) -> bool:
    """Whether the statement waited too long for a lock, or in a circle."""
    return getattr(error.orig, "sqlstate", None) in ("55P03", "40P01")


@contextmanager
def unhurried() -> Iterator[None]:
    """For a migration's statements that may take long because they hold nobody up."""
    connection = op.get_bind()
    set_timeouts(connection, "0", "0")
    yield
    set_timeouts(connection)


@contextmanager
def _outside_a_transaction() -> Iterator[None]:
    with op.get_context().autocommit_block(), unhurried():
        yield


_INVALID = sa.text(
    "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid)"
)


def build_index(
    name: str, table: str, columns: Sequence[str | sa.TextClause], where: str | None = None
) -> None:
    """Make an index while the table is written to. May be repeated: what a failed build left is made anew.

    Commits what the migration did before; so a migration does nothing but this.
    """
    with _outside_a_transaction():
        if op.get_bind().execute(_INVALID, {"name": name}).scalar_one():
            _drop(name, table)
        op.create_index(
            name,
            table,
            list(columns),
            postgresql_where=None if where is None else sa.text(where),
            postgresql_concurrently=True,
            if_not_exists=True,
        )


def drop_index(name: str, table: str) -> None:
    """Drop an index without holding up who uses its table. May be repeated."""
    with _outside_a_transaction():
        _drop(name, table)


def _drop(name: str, table: str) -> None:
    op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
