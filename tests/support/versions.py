"""A deployment in which parts of two versions serve: the one of this checkout, and the one before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import sqlalchemy as sa
from support.process_nodes import PATIENCE_S, Process, RedisServer
from support.sdk_parts import answers
from support.sdk_tenants import Tenant, make_tenant
from support.tool_server import ToolServer
from support.worker_system import System, system_over

from onceonly_jobs.config import new_secret
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.store import migrations

TESTS = Path(__file__).parents[1]
WHEEL = TESTS / "upgrade" / "onceonly_jobs-0.1.0-py3-none-any.whl"
OLD, NEW = "old", "new"
OLD_SCHEMA = "0011"
MAIN = ("-P", "-m", "onceonly_jobs.cli.main")
"""-P keeps the checkout, which the parts are started in, from being found before the version that is meant."""


class Start(NamedTuple):
    """A line that a handler left when it started."""

    key: str
    attempt: int
    token: int
    version: str


@dataclass
class Deployment:
    """One database, Redis and tool server; parts of either version are started as a test wants them."""

    system: System
    owner_url: str
    serving_url: str
    old_site: Path
    tool: ToolServer
    tenant: Tenant
    stack: ExitStack
    origins: dict[str, str] = field(default_factory=dict)

    def start(self, version: str, *kinds: str) -> list[Process]:
        """Parts that serve."""
        parts = [self._part(version, kind) for kind in kinds]
        for part in parts:
            self.stack.callback(part.teardown)
            part.start()
        for part in parts:
            self.system.until(lambda part=part: self._serves(part), f"{part.name} serves")
        return parts

    def _part(self, version: str, kind: str) -> Process:
        port = free_port()
        options = {
            "worker": ("--app", "support.upgrade_app", "--concurrency", "2"),
            "api": ("--port", str(port)),
        }
        site = self.old_site if version == OLD else TESTS.parent
        path = os.pathsep.join([str(site), str(TESTS)])
        part = self.system.started_as(
            f"{version}-{kind}", *MAIN, kind, *options.get(kind, ()), PYTHONPATH=path
        )
        if kind == "api":
            self.origins[part.name] = f"http://127.0.0.1:{port}"
        return part

    def _serves(self, part: Process) -> bool:
        """The health of an API process is asked for: the version before is not `ready` on a newer schema."""
        assert part.status == "running", part.logs()
        return answers(f"{self.origin(part)}/health") if part.name in self.origins else part.is_ready

    def origin(self, api: Process) -> str:
        """Where an API process answers."""
        return self.origins[api.name]

    def stop(self, *parts: Process) -> None:
        """End parts in their orderly way."""
        for part in parts:
            part.signal_main("SIGTERM")
        for part in parts:
            assert part.wait() in (0, -signal.SIGTERM), part.logs()  # uvicorn ends by the signal it got

    def migrate(self, revision: str = "head", **options: Any) -> None:
        migrations.upgrade(self.owner_url, self.serving_url, revision, **options)

    @contextmanager
    def busy_with(self, table: str) -> Iterator[None]:
        """A transaction that has used a table, and does not end."""
        with self.system.db.engine.begin() as connection:
            connection.exec_driver_sql(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
            yield

    def migration_waits(self) -> bool:
        """Whether a migration is waiting for a table right now."""
        query = """SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
            WHERE datname = current_database() AND mode = 'AccessExclusiveLock' AND NOT granted) AS waits"""
        return bool(self.system.rows(query)[0]["waits"])

    def starts(self) -> dict[str, list[Start]]:
        """What the handlers say of their starts, by key."""
        by_key = defaultdict(list)
        path = self.system.directory / "witness"
        for line in path.read_text().splitlines() if path.exists() else ():
            key, attempt, token, version, _pid = line.split()
            by_key[key].append(Start(key, int(attempt), int(token), version))
        return by_key

    def settle(self) -> None:
        """Wait until nothing is queued or running any more."""
        query = "SELECT count(*) AS open FROM runs WHERE state IN ('queued', 'in_progress')"
        self.system.until(lambda: self.system.rows(query)[0]["open"] == 0, "nothing is under way")


def python(site: Path, *arguments: str, **env: str) -> str:
    """What Python prints, with the packages of a site found first."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**clean, **env, "PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def deployment(servers: Any, name: str, directory: Path) -> Iterator[Deployment]:
    """A database that the old version made, as its serving role uses it; nothing runs yet."""
    old_site = directory / OLD
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(old_site)
    owner_url, serving_url = servers.database(name), servers.database(name, "onceonly_test_app")
    with ExitStack() as stack:
        stack.enter_context(_database(servers, name))
        broker = RedisServer(directory / "redis")
        stack.callback(broker.teardown)
        told = python(
            old_site,
            *MAIN,
            "migrate",
            ONCEONLY_DATABASE_URL=serving_url,
            ONCEONLY_MIGRATION_DATABASE_URL=owner_url,
        )
        assert told == f"schema is at {OLD_SCHEMA}\n"
        env = {
            "ONCEONLY_SECRET_KEY": new_secret(),
            "ONCEONLY_TOOL_ALLOW": "loopback",
            "ONCEONLY_TEST_WITNESS": str(directory / "witness"),
        }
        system = stack.enter_context(system_over(serving_url, broker.celeryconfig["url"], directory, **env))
        tool = stack.enter_context(ToolServer())
        yield Deployment(system, owner_url, serving_url, old_site, tool, make_tenant(system.db), stack)


@contextmanager
def _database(servers: Any, name: str) -> Iterator[None]:
    admin = sa.create_engine(servers.postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def register_tool(base_url: str, tenant: Tenant, url: str) -> None:
    """Make `mail` known, a tool that the tool server answers for."""
    auth = {"type": "hmac_sha256", "secret": "a shared secret"}
    body = {"name": "mail", "url": url, "scope_id": "global", "auth": auth, "effect": "idempotent"}
    headers = {"Authorization": f"Bearer {tenant.api_key}"}
    httpx.post(f"{base_url}/v1/tools", json=body, headers=headers, timeout=30).raise_for_status()
