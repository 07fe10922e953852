"""Migrations beside transactions that hold what they need, and beside each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import pytest
import sqlalchemy as sa
from support.process_nodes import PATIENCE_S

from onceonly_jobs.errors import SchemaBusy
from onceonly_jobs.store import migrations, revisions

OLD_SCHEMA = "0011"
INDEXES = "0014"
BEFORE_INDEXES = "0013"


@contextmanager
def transaction(url: str, *statements: str) -> Iterator[sa.Connection]:
    """A transaction that stays open, after these statements."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        yield connection
        connection.rollback()


def one(url: str, query: str) -> object:
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        return connection.exec_driver_sql(query).scalar()


def until(url: str, query: str) -> None:
    """Wait for a query to be true."""
    for _ in range(int(PATIENCE_S / 0.02)):
        if one(url, query):
            return
        threading.Event().wait(0.02)
    raise AssertionError(query)


def invalid_indexes(url: str) -> object:
    return one(url, "SELECT count(*) FROM pg_index WHERE NOT indisvalid")


WAITING = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '{}%%' AND wait_event_type = 'Lock')"
INSERT_LOCK = """INSERT INTO locks (tenant_id, key, ttl_s, first_seen_at, locked_until_at)
    VALUES ('t', '{}', 1, onceonly_now(), onceonly_now())"""


def test_a_migration_gives_way_to_a_long_transaction_and_is_repeated(
    owner_url: str, database_url: str
) -> None:
    migrations.upgrade(owner_url, revision=OLD_SCHEMA)
    with transaction(database_url, "LOCK TABLE runs IN ROW EXCLUSIVE MODE"):
        with pytest.raises(SchemaBusy):
            migrations.upgrade(owner_url, lock_tries=1)
        assert one(database_url, "SELECT count(*) FROM runs") == 0
    assert migrations.current(owner_url) == "0012", "what did not need the lock is done"
    migrations.upgrade(owner_url)
    assert migrations.current(owner_url) == revisions.head()


def test_a_migration_waits_in_turns_that_let_traffic_through(owner_url: str, database_url: str) -> None:
    """Who comes after it gets the table at the end of each turn, though the transaction before it goes on."""
    migrations.upgrade(owner_url, revision=OLD_SCHEMA)
    with ThreadPoolExecutor(1) as pool:
        with transaction(database_url, "LOCK TABLE runs IN ROW EXCLUSIVE MODE"):
            migrating = pool.submit(migrations.upgrade, owner_url)
            until(owner_url, WAITING.format("ALTER TABLE runs"))
            assert one(database_url, "UPDATE runs SET key = key RETURNING id") is None
            assert not migrating.done()
        migrating.result(PATIENCE_S)
    assert migrations.current(owner_url) == revisions.head()


def test_an_index_is_built_while_its_table_is_written_to(owner_url: str, database_url: str) -> None:
    """The build has to wait for a transaction that began before it; whoever writes meanwhile does not."""
    migrations.upgrade(owner_url, revision=BEFORE_INDEXES)
    with ThreadPoolExecutor(1) as pool:
        with transaction(database_url, INSERT_LOCK.format("before")) as before:
            migrating = pool.submit(migrations.upgrade, owner_url)
            until(owner_url, WAITING.format("CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_locks_expired"))
            for number in range(50):
                one(database_url, INSERT_LOCK.format(number) + " RETURNING key")
            assert not migrating.done()
            before.commit()
        migrating.result(PATIENCE_S)
    assert migrations.current(owner_url) == revisions.head()
    assert invalid_indexes(owner_url) == 0
    assert one(owner_url, "SELECT count(*) FROM locks") == 51


def test_what_a_failed_build_left_is_made_anew(owner_url: str, database_url: str) -> None:
    migrations.upgrade(owner_url, revision=BEFORE_INDEXES)
    with ThreadPoolExecutor(1) as pool, transaction(database_url, INSERT_LOCK.format("before")):
        migrating = pool.submit(migrations.upgrade, owner_url)
        building = "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_locks_expired"
        until(owner_url, WAITING.format(building))
        one(
            owner_url,
            f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '{building}%%'"
            " AND pid <> pg_backend_pid()",
        )
        assert isinstance(migrating.exception(PATIENCE_S), sa.exc.DBAPIError)
    assert (migrations.current(owner_url), invalid_indexes(owner_url)) == (BEFORE_INDEXES, 1)
    migrations.upgrade(owner_url)
    assert (migrations.current(owner_url), invalid_indexes(owner_url)) == (revisions.head(), 0)


def test_many_migrators_at_once_migrate_once(owner_url: str, database_url: str) -> None:
    """Three hosts are deployed to at the same time, each migrates first."""
    migrations.upgrade(owner_url, revision=OLD_SCHEMA)
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        for done in [pool.submit(migrations.upgrade, owner_url, database_url) for _ in range(3)]:
            done.result(PATIENCE_S)
    assert migrations.current(owner_url) == revisions.head()
    assert invalid_indexes(owner_url) == 0


def test_tokens_of_this_version_are_above_all_that_the_one_before_gave(
    owner_url: str, database_url: str
) -> None:
    """What it goes on giving until it is replaced included: that adds 1 to the token of the run."""
    migrations.upgrade(owner_url, revision=OLD_SCHEMA)
    one(
        owner_url,
        "INSERT INTO runs (tenant_id, key, run_id, owner, state, lease_id, lease_ttl_s, first_seen_at, fencing_token)"
        " VALUES ('t', 'k', 'k', 'caller', 'completed', 'l', 60, onceonly_now(), 7) RETURNING id",
    )
    migrations.upgrade(owner_url)
    added_by_the_version_before = 1000
    token = one(owner_url, "SELECT nextval('fencing_tokens')")
    assert isinstance(token, int)
    assert token > 7 + added_by_the_version_before
