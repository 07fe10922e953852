"""Fixtures for tests with real workers: pytest-celery's `celery_setup` over processes of ours.

With ONCEONLY_TEST_DOCKER=1 the broker is one of pytest-celery's own containers; ONCEONLY_TEST_BROKER_URL names
one that runs already, a RabbitMQ for example. Everything else stays as it is.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pytest_celery import CeleryBrokerCluster, CeleryWorkerCluster
from support.process_nodes import ExternalBroker, Process, ProcessBroker, ProcessWorker, RedisServer
from support.worker_system import System, system_over

WORKERS = 2
_numbers = itertools.count(1)


@pytest.fixture
def celery_backend_cluster() -> None:
    """Celery keeps no results: Postgres does."""


@pytest.fixture
def celery_broker_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CeleryBrokerCluster]:
    if os.environ.get("ONCEONLY_TEST_DOCKER") == "1":
        yield CeleryBrokerCluster(request.getfixturevalue("celery_redis_broker"))
        return
    url = os.environ.get("ONCEONLY_TEST_BROKER_URL")
    broker = ExternalBroker(url) if url else RedisServer(tmp_path / "redis")
    yield CeleryBrokerCluster(ProcessBroker(broker))
    broker.teardown()


@pytest.fixture
def parts(
    celery_broker_cluster: CeleryBrokerCluster, database_url: str, tmp_path: Path, extra_env: dict[str, str]
) -> Iterator[System]:
    """The parts of a deployment, none of which runs yet, and its database."""
    broker_url = celery_broker_cluster[0].config()["host_url"]
    with system_over(database_url, broker_url, tmp_path, **extra_env) as system:
        yield system


@pytest.fixture
def extra_env() -> dict[str, str]:
    """More of the parts' environment; for tests to override."""
    return {}


@pytest.fixture
def beat(parts: System) -> Iterator[Process]:
    """A running scheduler, with the relay in it."""
    process = parts.process("beat")
    process.start()
    process.ready()
    yield process
    process.teardown()


@pytest.fixture
def worker(parts: System, beat: Process) -> Iterator[Process]:
    """A running worker, with one process for runs."""
    process = parts.process("worker", "--concurrency", "1")
    process.start()
    process.ready()
    yield process
    process.teardown()


@pytest.fixture
def celery_worker_cluster(parts: System, beat: Process) -> Iterator[CeleryWorkerCluster]:
    """Running workers."""
    processes = [parts.process("worker", "--concurrency", "2") for _ in range(WORKERS)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor() as pool:
        list(pool.map(Process.ready, processes))
    yield CeleryWorkerCluster(*[ProcessWorker(process, app=None) for process in processes])
    for process in processes:
        process.teardown()


@pytest.fixture
def celery_worker_cluster_config(celery_broker_cluster_config: dict[str, Any]) -> dict[str, Any]:
    """pytest-celery's own, without a result backend."""
    return {"celery_broker_cluster_config": celery_broker_cluster_config}


@pytest.fixture(scope="module")
def serving(servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A worker and a scheduler that a module's tests share: keys have to be unique."""
    with serving_system(servers, template, tmp_path_factory.mktemp("serving")) as system:
        yield system


@contextmanager
def serving_system(
    servers: Any, template: str, directory: Path, concurrency: int = 2, **env: str
) -> Iterator[System]:
    """A running worker and scheduler, with a database and a broker of their own."""
    broker = RedisServer(directory / "redis")
    with (
        new_database(servers, template) as database_url,
        system_over(database_url, broker.celeryconfig["url"], directory, **env) as system,
    ):
        processes = [system.process("beat"), system.process("worker", "--concurrency", str(concurrency))]
        for process in processes:
            process.start()
        for process in processes:
            process.ready()
        yield system
        for process in processes:
            process.teardown()
    broker.teardown()


@contextmanager
def new_database(servers: Any, template: str) -> Iterator[str]:
    """A migrated database of its own, as the role that serves requests."""
    name = f"onceonly_serving_{os.getpid()}_{next(_numbers)}"
    admin = sa.create_engine(servers.postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield servers.database(name, "onceonly_test_app")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
