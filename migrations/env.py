"""Runs migrations: one at a time over all processes, and never waiting long for a lock that traffic holds.

Each step is a transaction of its own: what it locks is free again before the next one starts, and a step that
failed is where the next try goes on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from onceonly_jobs.config import Settings
from onceonly_jobs.store import schema_changes
from onceonly_jobs.store.database import connecting
from onceonly_jobs.store.tables import metadata


def database_url() -> str:
    given = context.config.attributes.get("url")
    if given is not None:
        return str(given)
    return Settings.load().owner_database_url


def migrate() -> None:
    url, how = connecting(database_url())
    engine = sa.create_engine(url, connect_args=how, poolclass=sa.NullPool)
    with engine.connect() as connection:
        schema_changes.wait_until_alone(connection)
        schema_changes.set_timeouts(connection)
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_server_default=False,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


migrate()
