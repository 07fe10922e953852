"""A system for the length of a test session: fresh, real and quick. Its data is not safe, and need not be."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from onceonly_jobs.config import new_secret, sqlalchemy_url
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.children import answers, exists
from onceonly_jobs.local.datadir import open_data_dir
from onceonly_jobs.local.ports import LOOPBACK, free_port
from onceonly_jobs.local.processes import kill_tree
from onceonly_jobs.local.servers import EmbeddedPostgres, EmbeddedRedis
from onceonly_jobs.services import account
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.migrations import upgrade

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
QUICK = {"ONCEONLY_RELAY_INTERVAL_S": "0.1", "ONCEONLY_TOOL_ALLOW": "loopback"}
NOT_SAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "32MB"}


class FreshSystem:
    """PostgreSQL, Redis and the API, in a directory that was empty; a worker where it is asked for.

    with FreshSystem(directory) as system:
        client = OnceOnly(system.new_key(), system.base_url)
    """

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.directory = open_data_dir(directory)
        self._given = dict(env or {})
        self._secret = new_secret()
        self._numbers = itertools.count(1)
        self._running: list[_Part] = []
        self._worker: tuple[str | None, tuple[_Part, _Part]] | None = None

    def start(self) -> None:
        """Start the servers and the API, and wait until they answer. Raises ConfigError."""
        self._postgres, self._redis = (
            EmbeddedPostgres(self.directory, NOT_SAFE),
            EmbeddedRedis(self.directory),
        )
        try:
            self._postgres.start()
            self._redis.start()
            upgrade(sqlalchemy_url(self._postgres.owner_url), sqlalchemy_url(self._postgres.app_url))
            self._database = Database(sqlalchemy_url(self._postgres.app_url), pool_size=2)
            port = free_port()
            self.base_url = f"http://{LOOPBACK}:{port}/v1"
            self._start_part("api", "--port", str(port)).wait(answers(f"http://{LOOPBACK}:{port}/ready"))
        except BaseException:
            self.stop()
            raise

    @property
    def database_url(self) -> str:
        """Where `Jobs` enqueues."""
        return self._postgres.app_url

    @property
    def owner_url(self) -> str:
        """The same database, as the owner of its tables."""
        return sqlalchemy_url(self._postgres.owner_url)

    @property
    def broker_url(self) -> str:
        return self._redis.url

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be a part of this system."""
        own = {
            "ONCEONLY_DATABASE_URL": self.database_url,
            "ONCEONLY_BROKER_URL": self.broker_url,
            "ONCEONLY_SECRET_KEY": self._secret,
        }
        return {**QUICK, **own, **self._given}

    def new_key(self, plan: str = "agency") -> str:
        """The API key of a new namespace, in which there is nothing."""
        tenant = f"test-{next(self._numbers)}"
        self._database.run(account.ensure_tenant, tenant, Plan(plan))
        return self._database.run(account.create_key, tenant).api_key

    def start_worker(self, app: str | None = None) -> None:
        """Let runs be executed: by the built-in jobs, or by those of a Celery app ("workers.app").

        One worker at a time: another app takes the place of the one before, the same one goes on.
        """
        if self._worker is not None and self._worker[0] == app:
            return
        self.stop_worker()
        options = ["--concurrency", "2", *(["--app", app] if app else [])]
        parts = self._start_part("worker", *options), self._start_part("relay")
        self._worker = app, parts
        for part in parts:
            part.wait(exists(part.ready_file))

    def stop_worker(self) -> None:
        """Let runs wait."""
        if self._worker is not None:
            for part in self._worker[1]:
                part.stop()
                self._running.remove(part)
        self._worker = None

    def _start_part(self, name: str, *options: str) -> _Part:
        outside = {key: value for key, value in os.environ.items() if not key.startswith("ONCEONLY_")}
        part = _Part(name, options, {**outside, **self.environment}, self.directory)
        self._running.append(part)
        return part

    def stop(self) -> None:
        """End all of it."""
        for part in reversed(self._running):
            part.stop()
        self._running.clear()
        self._worker = None
        if hasattr(self, "_database"):
            self._database.close()
        self._redis.stop()
        self._postgres.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Part:
    """A process of the system, from its start on."""

    def __init__(self, name: str, options: tuple[str, ...], env: dict[str, str], directory: Path) -> None:
        self.name = name
        self.ready_file = directory / f"{name}.ready"
        self.ready_file.unlink(missing_ok=True)
        self._log_path = directory / f"{name}.log"
        argv = [sys.executable, "-m", "onceonly_jobs.cli.main", name, *options]
        env = {**env, "ONCEONLY_READY_FILE": str(self.ready_file)}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, is_ready: Callable[[], bool]) -> None:
        """Until it answers. Raises ConfigError, with what it said, when it does not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(
                    f"{self.name} did not start:\n{self._log_path.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                kill_tree(self._process.pid)
                self._process.wait()
