"""A part of the system under torture: a process group that can be killed, frozen, thawed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from onceonly_jobs.local.processes import has_ended, kill_tree
from onceonly_jobs.torture.proxy import TcpProxy

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


class Part:
    """An API process, a worker or a scheduler, with proxies of its own to Postgres and Redis."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        directory: Path,
        proxies: Mapping[str, TcpProxy],
        answers: Callable[[], bool] | None = None,
    ) -> None:
        """answers: whether it serves; default: whether it has made its ready file."""
        self.name = name
        self.proxies = dict(proxies)
        self.ready_file = directory / f"{name}.ready"
        self.log_path = directory / f"{name}.log"
        self.starts = 0
        self._argv = list(argv)
        self._env = {**env, "ONCEONLY_READY_FILE": str(self.ready_file)}
        self._answers = answers or self.ready_file.exists
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans: list[psutil.Process] = []

    @property
    def kind(self) -> str:
        return self.name.rstrip("0123456789")

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, extra_env: Mapping[str, str] | None = None) -> None:
        """Start it; does not wait until it serves."""
        self.ready_file.unlink(missing_ok=True)
        self.starts += 1
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env={**self._env, **(extra_env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def serves(self) -> bool:
        return self.is_running and self._answers()

    def children(self) -> list[psutil.Process]:
        """Its first process's own children that are alive: of a worker, those that execute runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in psutil.Process(self.pid).children() if not has_ended(child)]
        return []

    def kill(self) -> None:
        """End the whole group at once, and what an earlier `kill_main` has left."""
        for orphan in self._orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
        self._orphans.clear()
        if self.is_running:
            kill_tree(self.pid)
        if self._process is not None:
            self._process.wait()

    def kill_main(self) -> None:
        """End the first process alone; its children go on without it."""
        if self.is_running:
            self._orphans += self.children()
            os.kill(self.pid, signal.SIGKILL)
            if self._process is not None:
                self._process.wait()

    def freeze(self) -> None:
        """Stop every process of the group where it is. One that has ended has no group: its number may be another's."""
        if self.is_running:
            self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_group(signal.SIGCONT)

    def stop(self) -> float:
        """Ask it to end in its own way; kills it where that takes too long. Seconds until it had ended."""
        began = time.monotonic()
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return time.monotonic() - began

    def last_words(self, size: int = 3000) -> str:
        return self.log_path.read_text(errors="replace")[-size:] if self.log_path.exists() else ""

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
