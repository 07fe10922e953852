"""What an embedded server is: a command to supervise, and how to start and stop it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.processes import kill_tree

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class EmbeddedServer(ABC):
    """A server in a data directory. The supervisor runs `argv`; anybody else uses it as a context manager."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    argv: list[str]
    cwd: Path

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the server answers now."""

    def on_ready(self) -> None:  # noqa: B027 - most servers need nothing
        """What has to be done once it answers, at each start."""

    @property
    def log_path(self) -> Path:
        return self.cwd / f"{self.name}.log"

    def start(self) -> None:
        """Start the server, logging to a file, and wait until it answers. Raises ConfigError when it ends."""
        with open(self.log_path, "ab", opener=_private) as log:
            self._process = subprocess.Popen(
                self.argv,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._process)
            self.on_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if process.poll() is not None:
                raise ConfigError(f"{self.name} ended with status {process.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ConfigError(f"{self.name} does not answer: {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n")
        return " / ".join(line.strip() for line in lines[-4:] if line.strip())

    def stop(self) -> None:
        """End the server in its own orderly way."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._process is None:
            return
        if self._process.poll() is None:
            kill_tree(self._process.pid)
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and start again on the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
