"""`onceonly-jobs up` over servers installed from Debian packages, told of them by URLs alone."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from onceonly import ApiError, OnceOnly
from support import sdk_servers
from support.clients import PATIENCE_S
from support.sdk_parts import command
from support.sdk_servers import Postgres, missing_packages

from onceonly_jobs.local.processes import has_ended, kill_tree
from onceonly_jobs.local.subprocess_system import LocalSystem

APP = Path(sdk_servers.__file__).with_name("sdk_worker_app.py")
LEASE = {"ONCEONLY_WORKER_LEASE_S": "4", "ONCEONLY_WORKER_HEARTBEAT_S": "1"}

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Servers:
    """What a deployment has beside PostgreSQL."""

    name: str
    broker: str
    hints: bool
    pooled: bool = False
    """PostgreSQL is behind a PgBouncer in transaction mode."""

    @property
    def packages(self) -> tuple[str, ...]:
        return (
            "postgresql-15",
            self.broker,
            *(["redis-server"] if self.hints else []),
            *(["pgbouncer"] if self.pooled else []),
        )


DEPLOYMENTS = [
    Servers("redis", broker="redis-server", hints=False),
    Servers("rabbitmq_and_redis", broker="rabbitmq-server", hints=True),
    Servers("rabbitmq_alone", broker="rabbitmq-server", hints=False),
    Servers("pgbouncer_and_redis", broker="redis-server", hints=False, pooled=True),
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with sdk_servers.postgres() as server:
        yield server


@pytest.fixture(scope="module")
def pooled(postgres: Postgres) -> Iterator[Postgres]:
    with sdk_servers.pgbouncer(postgres, {"pgbouncer_and_redis_app": "secret"}) as pool:
        yield pool


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with sdk_servers.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def amqp_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with sdk_servers.rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture(scope="module", params=DEPLOYMENTS, ids=lambda deployment: deployment.name)
def urls(request: pytest.FixtureRequest) -> dict[str, str]:
    """The URLs of a deployment's servers: an empty database, owned by one role and served by another."""
    deployment: Servers = request.param
    missing = missing_packages(*deployment.packages)
    if missing:
        pytest.skip(f"this machine lacks the Debian packages {', '.join(missing)}")
    database: Postgres = request.getfixturevalue("postgres")
    owner, serving = f"{deployment.name}_owner", f"{deployment.name}_app"
    database.execute(
        *(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'" for role in (owner, serving)),
        f"CREATE DATABASE {deployment.name} OWNER {owner}",
    )
    found = {
        "ONCEONLY_DATABASE_URL": database.url(deployment.name, serving, "secret"),
        "ONCEONLY_MIGRATION_DATABASE_URL": database.url(deployment.name, owner, "secret"),
    }
    if deployment.pooled:
        pool: Postgres = request.getfixturevalue("pooled")
        pooled = pool.url(deployment.name, serving, "secret")
        found["ONCEONLY_DATABASE_URL"] = f"{pooled}?prepare_threshold=none"
    if deployment.broker == "redis-server":
        found["ONCEONLY_BROKER_URL"] = f"{request.getfixturevalue('redis_url')}/0"
    else:
        found["ONCEONLY_BROKER_URL"] = request.getfixturevalue("amqp_url")
    if deployment.hints:
        found["ONCEONLY_REDIS_URL"] = f"{request.getfixturevalue('redis_url')}/1"
    return found


@pytest.fixture(scope="module")
def external(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """`up` in the directory of a deployment that has a job of its own."""
    home = tmp_path_factory.mktemp("deployment")
    (home / "workers").mkdir()
    (home / "workers" / "__init__.py").touch()
    shutil.copy(APP, home / "workers" / "app.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        with LocalSystem(
            data_dir=home / "data", port=0, workers=2, flower=False, env=urls | LEASE
        ) as running:
            yield running


@pytest.fixture
def sdk(external: LocalSystem) -> Iterator[OnceOnly]:
    with OnceOnly(external.api_key, external.base_url, fail_open=False) as client:
        yield client


def test_the_given_servers_are_used_and_none_is_started(external: LocalSystem, urls: dict[str, str]) -> None:
    assert urls.items() <= external.variables.items()
    with psycopg.connect(urls["ONCEONLY_DATABASE_URL"].partition("?")[0]) as connection:
        assert 150_000 <= connection.info.server_version < 160_000
        (tenants,) = connection.execute("SELECT count(*) FROM tenants").fetchone() or (0,)
    assert tenants == 1
    started = [process.name() for process in psutil.Process(external.pid).children(recursive=True)]
    assert not [name for name in started if name.startswith(("postgres", "redis", "beam", "epmd"))]


def test_doctor_finds_nothing_wrong(external: LocalSystem) -> None:
    seen = subprocess.run(
        command("doctor"),
        env=external.variables | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "FAIL" not in seen.stdout


def test_lock_is_won_once(sdk: OnceOnly, key: str) -> None:
    assert sdk.check_lock(key, ttl=60).locked
    assert sdk.check_lock(key, ttl=60).duplicate


def test_lease_is_completed_once(sdk: OnceOnly, key: str) -> None:
    lease = sdk.ai.lease(key, ttl=60)
    assert lease["status"] == "acquired"
    assert sdk.ai.lease(key, ttl=60)["status"] == "polling"
    with pytest.raises(ApiError) as caught:
        sdk.ai.complete(key, "lease_of_nobody", result={"by": "nobody"})
    assert (caught.value.status_code, caught.value.detail["reason"]) == (409, "not_owner")
    sdk.ai.complete(key, lease["lease_id"], result={"by": "holder"})
    assert sdk.ai.run_fn(key, lambda: pytest.fail("must not run")).result == {"by": "holder"}


@pytest.mark.parametrize("metadata", [None, {"task": "daily_summary"}], ids=["default", "daily_summary"])
def test_run_is_executed_once(sdk: OnceOnly, key: str, metadata: dict[str, str] | None) -> None:
    first = sdk.ai.run_and_wait(key, ttl=60, metadata=metadata, timeout=PATIENCE_S)
    assert (first.ok, first.status) == (True, "completed")
    assert sdk.ai.run_and_wait(key, ttl=60, metadata=metadata, timeout=PATIENCE_S) == first
    seen = events(sdk, key)
    assert (seen["run_started"], seen["run_finished"]) == (1, 1)


def test_long_poll_ends_with_the_run(sdk: OnceOnly, external: LocalSystem, key: str) -> None:
    """`wait=` works with hints and without: Postgres is read again behind them."""
    sdk.ai.run(key, ttl=60)
    answer = httpx.get(
        f"{external.base_url}/ai/result",
        params={"key": key, "wait": 30},
        headers={"Authorization": f"Bearer {external.api_key}"},
        timeout=40,
    )
    assert answer.json()["status"] == "completed"


def test_run_survives_the_killing_of_its_worker(
    sdk: OnceOnly, external: LocalSystem, key: str, tmp_path: Path
) -> None:
    mark = tmp_path / "pid"
    before = sdk.usage("ai")["usage"]
    run = sdk.ai.run(key, ttl=120, metadata={"task": "survive", "mark": str(mark)})
    assert run.status == "acquired"
    handler = wait_for_pid(mark)
    worker = next(part for part in handler.parents() if part.ppid() == external.pid)
    kill_tree(worker.pid)
    assert has_ended(handler)

    result = sdk.ai.wait(key, timeout=PATIENCE_S)
    assert (result.ok, result.status) == (True, "completed")
    assert result.result["attempt"] == 2
    assert result.result["fencing_token"] > 1
    assert result.result["pid"] != handler.pid
    seen = events(sdk, key)
    assert (seen["run_started"], seen["run_finished"]) == (2, 1)
    assert sdk.usage("ai")["usage"] == before + 1, "a second attempt is not charged again"


def events(sdk: OnceOnly, run_id: str) -> Counter[str]:
    return Counter(event["type"] for event in sdk.get_run_timeline(run_id)["events"])


def wait_for_pid(path: Path) -> psutil.Process:
    """The process that wrote its id there."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, "no worker took the run"
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))
