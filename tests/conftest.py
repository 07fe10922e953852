"""Real servers for every test: one embedded Postgres and Redis a session, a fresh database a test."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from onceonly_jobs.config import Settings, sqlalchemy_url
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.local.servers import EmbeddedPostgres, EmbeddedRedis
from onceonly_jobs.services import account
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.migrations import upgrade
from onceonly_jobs.testing import Clock

pytest_plugins = ["onceonly_jobs.pytest_plugin"]

TEMPLATE = "onceonly_template"
PATIENT = {"api_pool_timeout_s": 60.0, "api_statement_timeout_s": 60.0}
"""On a busy machine nobody is refused for its slowness."""
SERVING_ROLE = "onceonly_test_app"
MEMORY = Path("/dev/shm")
IN_MEMORY = "onceonly-tests-"
ENOUGH_BYTES = 4 << 30
_numbers = itertools.count(1)
LONG = (
    "unit/test_quality.py",
    "acceptance/test_up.py",
    "acceptance/test_torture.py",
    "upgrade/test_upgrade.py",
    "acceptance/test_direct_claims.py",
    "acceptance/test_rolling_restarts.py",
    "acceptance/test_killed_schedulers.py",
    "acceptance/test_stuck_workers.py",
    "acceptance/test_killed_calls.py",
    "acceptance/test_redelivery.py",
    "unit/test_client_typing.py",
    "unit/test_pytest_plugin.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left for one process alone at the end."""
    root = Path(__file__).parent
    rank = {root / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))


@dataclass(frozen=True)
class Servers:
    """Where the session's Postgres and Redis are. `postgres_url` is a superuser's."""

    postgres_url: str
    redis_url: str

    def database(self, name: str, role: str | None = None) -> str:
        url = sa.make_url(self.postgres_url).set(database=name)
        if role is not None:
            url = url.set(username=role, password=role)
        return url.render_as_string(hide_password=False)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the shell that runs the tests must not change what they test."""
    for name in list(os.environ):
        if name.startswith("ONCEONLY_") and not name.startswith("ONCEONLY_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Embedded servers; or, for a run against others, ONCEONLY_TEST_POSTGRES_URL (a superuser's) and
    ONCEONLY_TEST_REDIS_URL."""
    postgres_url = os.environ.get("ONCEONLY_TEST_POSTGRES_URL")
    redis_url = os.environ.get("ONCEONLY_TEST_REDIS_URL")
    with ExitStack() as running:
        data = running.enter_context(_in_memory()) or tmp_path_factory.mktemp("servers")
        if postgres_url is None:
            postgres = EmbeddedPostgres(data, {"fsync": "off", "full_page_writes": "off"})
            postgres.start()
            running.callback(postgres.stop)
            postgres_url = postgres.superuser_url
        if redis_url is None:
            broker = EmbeddedRedis(data)
            broker.start()
            running.callback(broker.stop)
            redis_url = broker.url
        yield Servers(sqlalchemy_url(postgres_url), redis_url)


@contextmanager
def _in_memory() -> Iterator[Path | None]:
    """A directory in memory, where there is enough of it: a fifth of what a test's own database costs on a disk."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ENOUGH_BYTES:
        yield None
        return
    for left in MEMORY.glob(f"{IN_MEMORY}*"):  # of sessions that were killed
        pid = left.name.removeprefix(IN_MEMORY)
        if pid == str(os.getpid()) or not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    directory = MEMORY / f"{IN_MEMORY}{os.getpid()}"
    directory.mkdir(mode=0o700)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _admin(servers: Servers, *statements: str) -> None:
    engine = sa.create_engine(servers.postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """A migrated database that every test's own is copied from, and a serving role that owns nothing."""
    _admin(
        servers,
        f"DROP DATABASE IF EXISTS {TEMPLATE}",
        f"CREATE DATABASE {TEMPLATE}",
        f"DO $$ BEGIN CREATE ROLE {SERVING_ROLE} LOGIN PASSWORD '{SERVING_ROLE}'; "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    )
    upgrade(servers.database(TEMPLATE), servers.database(TEMPLATE, SERVING_ROLE))
    return TEMPLATE


@pytest.fixture
def owner_url(servers: Servers, template: str) -> Iterator[str]:
    """A fresh, migrated database, as its owner."""
    name = f"onceonly_test_{os.getpid()}_{next(_numbers)}"
    _admin(servers, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield servers.database(name)
    _admin(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(owner_url: str) -> str:
    """The same database, as the role that serves requests."""
    return (
        sa.make_url(owner_url)
        .set(username=SERVING_ROLE, password=SERVING_ROLE)
        .render_as_string(hide_password=False)
    )


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """The session's Redis, emptied."""
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    return servers.redis_url


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return Settings.load(database_url=database_url, broker_url=redis_url, **PATIENT)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=20)
    yield database
    database.close()


@pytest.fixture
def clock(owner_url: str) -> Clock:
    """Time that passes as a test says, and not by itself."""
    clock = Clock(owner_url)
    clock.stop()
    return clock


@dataclass(frozen=True)
class Account:
    """A tenant with a key, as a caller and as the key itself."""

    caller: Caller
    api_key: str


def make_account(db: Database, tenant_id: str = "t", plan: Plan = Plan.AGENCY) -> Account:
    db.run(account.ensure_tenant, tenant_id, plan)
    api_key = db.run(account.create_key, tenant_id).api_key
    return Account(db.run(account.authenticate, api_key), api_key)


@pytest.fixture
def own(db: Database) -> Account:
    """An agency tenant `t`."""
    return make_account(db)


@pytest.fixture
def caller(own: Account) -> Caller:
    return own.caller
