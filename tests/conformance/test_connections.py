"""What happens to an operation whose connection has died, or whose transaction was given up."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import account
from onceonly_jobs.store.database import Database, may_pass, refused_value, unreachable
from tests.conftest import Account


def end_connections(owner_url: str) -> None:
    """What a restart of Postgres does to pooled connections."""
    engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
    others = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        connection.execute(others)


def test_a_pooled_connection_that_died_is_not_the_callers_concern(
    db: Database, owner_url: str, own: Account
) -> None:
    """A 503 on check-lock would make fail-open clients act twice, though the database is up."""
    db.run(account.authenticate, own.api_key)
    end_connections(owner_url)
    assert db.run(account.authenticate, own.api_key) == own.caller


def test_neither_is_one_of_the_event_loops(db: Database, owner_url: str, own: Account) -> None:
    async def scenario() -> None:
        await db.arun(account.authenticate, own.api_key)
        await asyncio.to_thread(end_connections, owner_url)
        assert await db.arun(account.authenticate, own.api_key) == own.caller
        await db.aclose()

    asyncio.run(scenario())


def test_a_lock_that_is_not_had_in_time_may_be_had_later(db: Database, own: Account) -> None:
    """Such an error must not turn a finished run's result into a failure."""
    lock = sa.text("SELECT FROM tenants WHERE id = 't' FOR UPDATE")
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with db.engine.begin() as connection:
            connection.execute(lock)
            held.set()
            over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10ms'")
        with pytest.raises(DBAPIError) as refused:
            connection.execute(lock)
    over.set()
    holder.join()
    assert may_pass(refused.value)
    assert not refused_value(refused.value)
    assert not unreachable(refused.value)


def test_a_value_that_postgres_can_not_keep_never_passes(db: Database) -> None:
    with db.engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(sa.text("SELECT CAST('1e400' AS double precision)"))
    assert refused_value(refused.value)
    assert not may_pass(refused.value)


def prepared(url: str) -> int:
    """How many statements a connection has prepared after asking one thing often."""
    database = Database(url, pool_size=1)
    try:
        with database.engine.connect() as connection:
            for _ in range(20):
                connection.execute(sa.text("SELECT CAST(:n AS integer)"), {"n": 1})
            return int(
                connection.execute(sa.text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
            )
    finally:
        database.close()


def test_a_url_can_say_that_nothing_is_to_be_prepared(database_url: str) -> None:
    """Behind a pool that gives each transaction another connection, what one has prepared the next does not know."""
    assert prepared(database_url) > 0
    assert prepared(f"{database_url}?prepare_threshold=none") == 0
    with pytest.raises(ConfigError, match="prepare_threshold"):
        Database(f"{database_url}?prepare_threshold=never")
