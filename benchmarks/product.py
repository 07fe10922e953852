"""Our own system: API, worker and scheduler as processes that are started and ended as a measurement needs them."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.peers.driver import ADAPTERS
from benchmarks.processes import Part, wait_until
from benchmarks.servers import Servers
from onceonly_jobs.config import new_secret, sqlalchemy_url
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.local.children import answers
from onceonly_jobs.local.ports import LOOPBACK, free_port
from onceonly_jobs.local.postgres import DATABASE
from onceonly_jobs.services import account
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.migrations import upgrade

TENANT = "bench"
NUMBERS = itertools.count()
"""For files that no two processes share."""
ROOT = Path(__file__).parents[1]
APP = "onceonly_peer"
"""The Celery app with the jobs that are measured, among the peers' adapters."""


def _urls(servers: Servers, name: str | None) -> tuple[str, str, str, str]:
    """Of the database as superuser, as owner and as the parts see it, and of the broker."""
    if name is None:
        superuser = servers.postgres.superuser_url.rpartition("/")[0] + f"/{DATABASE}"
        return superuser, servers.postgres.owner_url, servers.postgres.app_url, servers.redis.url
    url = servers.database(name)
    return url, url, url, servers.redis_database(name)


@dataclass(frozen=True)
class Api:
    """An API that serves."""

    port: int
    part: Part


class Product:
    """Parts over one database; what they are told is their defaults. Named, it is a second one on the same servers."""

    def __init__(self, servers: Servers, name: str | None = None) -> None:
        self.servers = servers
        self.directory = servers.directory
        self.superuser_url, owner_url, app_url, broker_url = _urls(servers, name)
        self._running: list[Part] = []
        upgrade(sqlalchemy_url(owner_url), sqlalchemy_url(app_url))
        database = Database(sqlalchemy_url(app_url), pool_size=1)
        database.run(account.ensure_tenant, TENANT, Plan.AGENCY)
        self.api_key = database.run(account.create_key, TENANT).api_key
        database.close()
        self.witness = servers.directory / f"{name or 'onceonly'}.witness"
        self.env = {
            "ONCEONLY_DATABASE_URL": app_url,
            "ONCEONLY_BROKER_URL": broker_url,
            "ONCEONLY_SECRET_KEY": new_secret(),
            "ONCEONLY_LOG_LEVEL": "WARNING",
            "BENCH_WITNESS": str(self.witness),
            "BENCH_TENANT": TENANT,
            "PYTHONPATH": str(ADAPTERS),
        }

    def api(self, processes: int = 1) -> Api:
        port = free_port()
        part = self._start("api", "--port", str(port), "--workers", str(processes))
        part.wait_until(answers(f"http://{LOOPBACK}:{port}/ready"))
        return Api(port, part)

    def worker(self, concurrency: int = 2) -> Part:
        return self._start_ready("worker", "--app", APP, "--concurrency", str(concurrency))

    def scheduler(self) -> Part:
        """Publishes what is due, takes back what dead workers held, seals the audit trail."""
        return self._start_ready("beat", "--app", APP)

    def floor(self) -> Api:
        """The constant endpoint."""
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.floor", str(port)]
        part = Part("floor", command, self.env | {"PYTHONPATH": str(ROOT)}, self._log("floor"))
        self._running.append(part)
        part.wait_until(answers(f"http://{LOOPBACK}:{port}/ready"))
        return Api(port, part)

    def stop(self, *parts: Part) -> None:
        """These, or else everything that runs."""
        for part in parts or tuple(reversed(self._running)):
            part.stop()
            self._running.remove(part)

    def driver_env(self, api: Api) -> dict[str, str]:
        """What a program needs to ask this API."""
        return self.env | {
            "ONCEONLY_BASE_URL": f"http://{LOOPBACK}:{api.port}/v1",
            "ONCEONLY_API_KEY": self.api_key,
        }

    def count(self, query: str, *values: object) -> int:
        """What a query counts, as the superuser sees it."""
        with psycopg.connect(self.superuser_url) as connection:
            row = connection.execute(query, values).fetchone()
        return int(row[0]) if row else 0

    def unfinished(self) -> int:
        """Runs that are not stored as completed."""
        return self.count("SELECT count(*) FROM runs WHERE state IN ('queued', 'in_progress')")

    def settle(self, patience_s: float = 120) -> None:
        """Wait until nothing is to be done any more."""
        wait_until(lambda: self.unfinished() == 0, patience_s, "all runs are finished", 0.1)

    def _start_ready(self, name: str, *options: str) -> Part:
        ready = self.servers.directory / f"{name}-{next(NUMBERS)}.ready"
        part = self._start(name, *options, ONCEONLY_READY_FILE=str(ready))
        part.wait_until(ready.exists)
        return part

    def _start(self, name: str, *options: str, **env: str) -> Part:
        command = [sys.executable, "-m", "onceonly_jobs.cli.main", name, *options]
        part = Part(name, command, self.env | env, self._log(name), self.servers.directory)
        self._running.append(part)
        return part

    def _log(self, name: str) -> Path:
        return self.servers.directory / f"{name}-{next(NUMBERS)}.log"
