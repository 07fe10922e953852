"""pytest-celery's nodes over processes of this machine, where its own are Docker containers.

A node needs something container-like: that can be ready, log, be killed and restarted, and give its Celery
settings. `Process` is that for a worker or a relay, `RedisServer` for the broker.
"""

from __future__ import annotations

import os
import signal as signals
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from celery import __version__ as celery_version
from pytest_celery import CeleryTestBroker, CeleryTestWorker
from support.fork_server import Forked, ForkServer

from onceonly_jobs.local.redis import EmbeddedRedis

FORK_SERVER = ForkServer()
PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]


class Process:
    """A process group in place of a container: signals reach every process of it."""

    def __init__(
        self, name: str, argv: list[str], env: Mapping[str, str], directory: Path, broker_url: str
    ) -> None:
        self.name = name
        self.id = uuid.uuid4().hex
        self._argv = argv
        self._ready_file = directory / f"{name}.ready"
        self._log = directory / f"{name}.log"
        self.env = {**os.environ, **env, "ONCEONLY_READY_FILE": str(self._ready_file)}
        self._broker_url = broker_url
        self._process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {"url": self._broker_url, "host_url": self._broker_url}

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was started"
        return self._process.pid

    @property
    def status(self) -> Literal["created", "running", "exited"]:
        if self._process is None:
            return "created"
        return "running" if self._process.poll() is None else "exited"

    def start(self) -> None:
        self._ready_file.unlink(missing_ok=True)
        self._process = FORK_SERVER.start(self._argv, ROOT, self.env, self._log)
        if self._process is not None:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def is_ready(self) -> bool:
        """Whether it has said since its last start that it serves."""
        return self._ready_file.exists()

    def ready(self) -> bool:
        """Whether it serves; waits for that."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.is_ready:
            if self.status != "running" or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not ready, but {self.status}:\n{self.logs()}")
            time.sleep(0.05)
        return True

    def logs(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal to the whole group; with none, kill it and wait for its end."""
        number = signals.SIGKILL if signal is None else _number(signal)
        os.killpg(self.pid, number)
        if number == signals.SIGKILL:
            assert self._process is not None
            self._process.wait(PATIENCE_S)

    def signal_main(self, signal: str | int) -> None:
        """Send a signal to the first process alone."""
        os.kill(self.pid, _number(signal))

    def wait(self) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def restart(self, timeout: float | None = None) -> None:
        self.teardown()
        self.start()

    def reload(self) -> None:
        """A container object caches its state; a process has none to reload."""

    def teardown(self) -> None:
        if self.status == "running":
            self.kill("SIGCONT")
            self.kill()


def _number(signal: str | int) -> int:
    return signals.Signals[signal] if isinstance(signal, str) else signal


class RedisServer:
    """An embedded Redis in place of a container."""

    def __init__(self, directory: Path) -> None:
        self._server = EmbeddedRedis(directory)
        self._server.start()
        self.name = "redis"
        self.id = uuid.uuid4().hex

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {"url": self._server.url, "host_url": self._server.url}

    @property
    def status(self) -> Literal["running", "exited"]:
        return "running" if self._server.is_ready() else "exited"

    def ready(self) -> bool:
        return self._server.is_ready()

    def logs(self) -> str:
        return self._server.log_path.read_text(errors="replace")

    def kill(self, signal: str | int | None = None) -> None:
        self._server.kill()

    def restart(self, timeout: float | None = None) -> None:
        self._server.restart()

    def reload(self) -> None:
        """Nothing is cached."""

    def teardown(self) -> None:
        self._server.stop()


class ExternalBroker:
    """A broker that runs anyway, by its URL."""

    name = "external"

    def __init__(self, url: str) -> None:
        self.id = uuid.uuid4().hex
        self.celeryconfig = {"url": url, "host_url": url}
        self.status = "running"

    def ready(self) -> bool:
        return True

    def logs(self) -> str:
        return ""

    def reload(self) -> None:
        """Nothing is cached."""

    def teardown(self) -> None:
        """It is not ours to end."""


class ProcessWorker(CeleryTestWorker):  # type: ignore[misc]
    """A real worker, started as a user starts it."""

    container: Process

    @property
    def version(self) -> str:
        return str(celery_version)

    @property
    def log_level(self) -> str:
        return "INFO"

    @property
    def worker_name(self) -> str:
        return self.container.name

    @property
    def worker_queue(self) -> str:
        return "onceonly"


class ProcessBroker(CeleryTestBroker):  # type: ignore[misc]
    """The broker that the workers of a test share."""
