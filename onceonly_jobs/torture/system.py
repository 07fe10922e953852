"""The system under torture: servers, API processes, workers and schedulers, and a bad line in front of each."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import sqlalchemy as sa

from onceonly_jobs.config import Settings, new_secret, sqlalchemy_url
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.children import answers
from onceonly_jobs.local.ports import LOOPBACK, free_port
from onceonly_jobs.local.servers import EmbeddedPostgres, EmbeddedRedis
from onceonly_jobs.services import account, schedules
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.migrations import upgrade
from onceonly_jobs.torture.jobs import ask
from onceonly_jobs.torture.parts import START_TIMEOUT_S, Part
from onceonly_jobs.torture.proxy import TcpProxy

logger = logging.getLogger(__name__)

CLI = ("-m", "onceonly_jobs.cli.main")
LEASE_S = 3.0
MANY = 1000
"""More schedules than a torture makes."""
CONCURRENCY = 2

QUICK = {
    "ONCEONLY_WORKER_LEASE_S": str(LEASE_S),
    "ONCEONLY_WORKER_HEARTBEAT_S": "1",
    "ONCEONLY_TIME_LIMIT_GRACE_S": "5",  # a frozen process is to wake up as a zombie, not to end itself
    "ONCEONLY_RELAY_INTERVAL_S": "0.2",
    "ONCEONLY_PUBLISH_GRACE_S": "0.5",
    "ONCEONLY_BROKER_BACKLOG": "1",  # most runs are taken without messages
    "ONCEONLY_AUDIT_SEAL_S": "1",
    "ONCEONLY_DRAIN_S": "2",
    "ONCEONLY_TOOL_ALLOW": "loopback",
    "ONCEONLY_TOOL_PATIENCE_S": "6",
}
"""Short leases, so that a torture of minutes sees what happens in days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where Postgres and Redis are, and whether they are the torture's own, to be killed at will."""

    database_url: str
    broker_url: str
    secret_key: str
    default_queue: str
    postgres: EmbeddedPostgres | None
    redis: EmbeddedRedis | None


class System:
    """All processes; use `running` to start and end them."""

    def __init__(self, servers: Servers, directory: Path, program: Sequence[str]) -> None:
        self.servers = servers
        self.directory = directory
        self.tenant = f"torture-{secrets.token_hex(4)}"
        self.database = Database(sqlalchemy_url(servers.database_url), pool_size=3)
        self.witness_path = directory / "witness.jsonl"
        self.witness_url = f"http://{LOOPBACK}:{free_port()}"
        self.base_urls: list[str] = []
        self.parts: list[Part] = []
        self.proxies: list[TcpProxy] = []
        self._program = list(program)
        self._witness: subprocess.Popen[bytes] | None = None
        self.api_key = ""

    def start(self, apis: int, workers: int, beats: int) -> None:
        """Start everything and wait until all of it serves. Raises ConfigError."""
        self._start_witness()
        self.database.run(account.ensure_tenant, self.tenant, Plan.AGENCY)
        self.api_key = self.database.run(account.create_key, self.tenant).api_key
        for number in range(1, apis + 1):
            self._add_api(f"api{number}")
        app = ("--app", "onceonly_jobs.torture.worker_app")
        for number in range(1, workers + 1):
            options = ("--concurrency", str(CONCURRENCY), "--queues", self.tenant)
            self._add(f"worker{number}", "worker", *app, *options)
        for number in range(1, beats + 1):
            self._add(f"beat{number}", "beat", *app)
        for part in self.parts:
            part.start()
        self.until(lambda: all(part.serves() for part in self.parts), "every part serves")

    def of_kind(self, kind: str) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]

    def heal(self) -> None:
        """A good line, and everything running and thawed."""
        for proxy in self.proxies:
            proxy.heal()
        for part in self.parts:
            part.thaw()
        self.revive()

    def revive(self) -> list[str]:
        """Start what has ended, as a supervisor would; its names."""
        ended = [part for part in self.parts if not part.is_running]
        for part in ended:
            part.start()
        return [part.name for part in ended]

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What the database has for the torture's tenant; asked again while connections are found dead."""
        for _ in range(10):
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                return self._rows(query)
            time.sleep(0.5)
        return self._rows(query)

    def _rows(self, query: str) -> list[dict[str, Any]]:
        with self.database.engine.connect() as connection:
            found = connection.execute(sa.text(query), {"tenant_id": self.tenant})
            return [dict(row) for row in found.mappings()]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for a condition. Raises ConfigError with what the parts said last."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise ConfigError(f"not within {timeout_s:.0f} s: {what}\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        return "\n".join(f"--- {part.name}\n{part.last_words(1500)}" for part in self.parts)

    def stop(self) -> None:
        """End every process that was started here."""
        for part in self.parts:
            part.thaw()
            part.kill()
        for proxy in self.proxies:
            proxy.close()
        if self._witness is not None:
            self._witness.kill()
            self._witness.wait()

    def retire(self) -> None:
        """In somebody's deployment the torture's rows stay, but nothing ticks any more and its key opens nothing.

        By the database alone: there may be no API by now.
        """
        if self.servers.postgres is not None or not self.api_key:
            return
        try:
            for schedule in self.database.run(schedules.list_all, self.tenant, MANY, 0)[1]:
                self.database.run(schedules.set_paused, self.tenant, self.tenant, schedule.name, True)
            for key in self.database.run(account.list_keys, self.tenant):
                self.database.run(account.revoke_key, key.id)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("tenant %s still has active schedules or keys: %s", self.tenant, brief(error))

    def _start_witness(self) -> None:
        port = str(urlsplit(self.witness_url).port)
        argv = [sys.executable, "-m", "onceonly_jobs.torture.witness", str(self.witness_path), port]
        with (self.directory / "witness.log").open("ab") as log:
            self._witness = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.until(self._witness_answers, "the witness answers", 30)

    def _witness_answers(self) -> bool:
        try:
            return ask(self.witness_url, "GET", "/seen/nothing") == {"seen": 0}
        except OSError:
            return False

    def _add_api(self, name: str) -> None:
        port = free_port()
        front = self._proxy(LOOPBACK, port)
        self.base_urls.append(f"http://{LOOPBACK}:{front.port}/v1")
        part = self._add(
            name,
            *("api", "--port", str(port)),
            answers=answers(f"http://{LOOPBACK}:{port}/ready"),
            ONCEONLY_DEFAULT_QUEUE=self.tenant,  # tool calls go where only the torture's workers are
        )
        part.proxies["http"] = front

    def _add(self, name: str, *words: str, answers: Callable[[], bool] | None = None, **env: str) -> Part:
        database, broker = (
            self._proxied(url) for url in (self.servers.database_url, self.servers.broker_url)
        )
        outside = {key: value for key, value in os.environ.items() if not key.startswith("ONCEONLY_")}
        given = {
            **outside,
            **QUICK,
            "ONCEONLY_DATABASE_URL": database[0],
            "ONCEONLY_BROKER_URL": broker[0],
            "ONCEONLY_SECRET_KEY": self.servers.secret_key,
            "ONCEONLY_DEFAULT_QUEUE": self.servers.default_queue,
            "ONCEONLY_SCHEDULE_TENANT": self.tenant,
            **env,
        }
        argv = [sys.executable, *self._program, *words]
        lines = {"postgres": database[1], "redis": broker[1]}
        part = Part(name, argv, given, self.directory, lines, answers)
        self.parts.append(part)
        return part

    def _proxied(self, url: str) -> tuple[str, TcpProxy]:
        """The same server through a proxy of its own."""
        parts = urlsplit(url)
        if parts.hostname is None:
            raise ConfigError("torture: a server behind a Unix socket can't be reached through a proxy")
        usual = 5432 if parts.scheme.startswith("postgres") else 6379
        proxy = self._proxy(parts.hostname, parts.port or usual)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}{LOOPBACK}:{proxy.port}")), proxy

    def _proxy(self, host: str, port: int) -> TcpProxy:
        proxy = TcpProxy(host, port).start()
        self.proxies.append(proxy)
        return proxy


@contextmanager
def running(
    directory: Path,
    *,
    given: Settings | None = None,
    program: Sequence[str] = CLI,
    apis: int = 2,
    workers: int = 2,
    beats: int = 2,
) -> Iterator[System]:
    """A system that serves: over the servers of the settings where they name some, else over its own.

    program: how Python starts a part.
    """
    with ExitStack() as stack:
        system = System(_servers(stack, directory, given), directory, program)
        stack.callback(system.database.close)
        stack.callback(system.retire)  # when what could hold its rows has ended
        stack.callback(system.stop)
        system.start(apis, workers, beats)
        yield system


def _servers(stack: ExitStack, directory: Path, given: Settings | None) -> Servers:
    if given is not None and given.database_url is not None and given.broker_url is not None:
        if given.secret_key is None:
            raise ConfigError("ONCEONLY_SECRET_KEY: the deployment's own is needed")
        return Servers(
            database_url=given.database_url,
            broker_url=given.broker_url,
            secret_key=given.secret_key,
            default_queue=given.default_queue,
            postgres=None,
            redis=None,
        )
    postgres = stack.enter_context(EmbeddedPostgres(directory))
    redis = stack.enter_context(EmbeddedRedis(directory))
    upgrade(sqlalchemy_url(postgres.owner_url), sqlalchemy_url(postgres.app_url))
    return Servers(
        database_url=postgres.app_url,
        broker_url=redis.url,
        secret_key=new_secret(),
        default_queue="onceonly",
        postgres=postgres,
        redis=redis,
    )
