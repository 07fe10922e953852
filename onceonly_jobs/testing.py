"""For tests, ours and users': answering operations without a database, and moving time in a real one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from onceonly_jobs.store.statement import Operation

T = TypeVar("T")


class NotAnswered(AssertionError):
    """The operation asked more questions than replies were given."""


def answer(operation: Operation[T], *replies: Any) -> T:
    """The value of an operation whose statements get these replies, in order: no database, no mocks."""
    remaining = iter(replies)
    reply: Any = None
    while True:
        try:
            statement = operation.send(reply)
        except StopIteration as done:
            value: T = done.value
            return value
        try:
            reply = next(remaining)
        except StopIteration:
            raise NotAnswered(f"no reply left for {statement.name}") from None


_MOVABLE = """
CREATE TABLE IF NOT EXISTS onceonly_clock (moved interval NOT NULL);
ALTER TABLE onceonly_clock ADD COLUMN IF NOT EXISTS stopped_at timestamptz;
INSERT INTO onceonly_clock SELECT interval '0' WHERE NOT EXISTS (SELECT FROM onceonly_clock);
CREATE OR REPLACE FUNCTION onceonly_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
AS 'SELECT coalesce(stopped_at, statement_timestamp()) + moved FROM onceonly_clock';
GRANT SELECT ON onceonly_clock TO PUBLIC;
"""


class Clock:
    """Moves the database's clock, and with it every process that works on this database."""

    def __init__(self, owner_url: str) -> None:
        self._engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_MOVABLE)

    def advance(self, seconds: float) -> None:
        """Let this many seconds pass at once."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE onceonly_clock SET moved = moved + make_interval(secs => :s)"), {"s": seconds}
            )

    def move_to(self, at: datetime) -> None:
        """Make it this time now."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE onceonly_clock SET moved = moved + (:at - onceonly_now())"), {"at": at}
            )

    def stop(self) -> None:
        """From now on let time pass by `advance` alone, however slow the machine is."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE onceonly_clock SET stopped_at = statement_timestamp()")

    def reset(self) -> None:
        """Back to the real time."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE onceonly_clock SET moved = interval '0', stopped_at = NULL")
