"""Runs migrations: one at a time over all processes, and never waiting long for a lock that traffic holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from onceonly_jobs.config import Settings
from onceonly_jobs.store.tables import metadata

ADVISORY_LOCK = 0x0CE0_171  # any number that nothing else on this database uses
LOCK_TIMEOUT = "4s"
STATEMENT_TIMEOUT = "60s"


def database_url() -> str:
    given = context.config.attributes.get("url")
    if given is not None:
        return str(given)
    return Settings.load().owner_database_url


def migrate() -> None:
    engine = sa.create_engine(database_url(), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(sa.text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
        context.configure(connection=connection, target_metadata=metadata, compare_server_default=False)
        with context.begin_transaction():
            context.run_migrations()


migrate()
