"""A whole system for the length of a `with` block, in processes of its own: for `demo` and for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.datadir import open_data_dir
from onceonly_jobs.local.devenv import read_dev_env
from onceonly_jobs.local.processes import kill_tree

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0


class LocalSystem:
    """`onceonly-jobs up` in a directory.

    with LocalSystem(data_dir=directory, port=0, flower=False) as system:
        print(system.base_url, system.api_key)

    ONCEONLY_* variables of this process are not passed on, so its settings cannot change what starts; env is.
    Port 0 is any free one. The log goes to `log_path`, or to stderr where not quiet.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        port: int = 0,
        workers: int | None = None,
        flower: bool = False,
        quiet: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = open_data_dir(data_dir)
        self.log_path = self.data_dir / "up.log"
        self._quiet = quiet
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("ONCEONLY_")} | dict(env or {})
        self._argv = [sys.executable, "-m", "onceonly_jobs.cli.main", "up", "--port", str(port)]
        self._argv += ["--data-dir", str(self.data_dir)]
        self._argv += ["--workers", str(workers)] if workers else []
        self._argv += [] if flower else ["--no-flower"]
        self._process: subprocess.Popen[bytes] | None = None
        self.variables: dict[str, str] = {}

    @property
    def base_url(self) -> str:
        """The API's address, ending in /v1."""
        return self.variables["ONCEONLY_BASE_URL"]

    @property
    def api_key(self) -> str:
        return self.variables["ONCEONLY_API_KEY"]

    @property
    def database_url(self) -> str:
        return self.variables["ONCEONLY_DATABASE_URL"]

    @property
    def broker_url(self) -> str:
        return self.variables["ONCEONLY_BROKER_URL"]

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        if self._process is None:
            raise RuntimeError("the system is not running")
        return self._process.pid

    def start(self) -> None:
        """Start everything and wait until all of it answers. Raises ConfigError with what `up` said."""
        before = self._written_at()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log if self._quiet else sys.stderr,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the caller, who then ends the block
            )
        try:
            self._wait_for_dev_env(self._process, before)
        except BaseException:
            self.stop()
            raise
        self.variables = read_dev_env(self.data_dir / "dev.env")

    def stop(self) -> None:
        """End it as Ctrl-C would, and wait until nothing of it is left."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """End the supervisor and all that it started at once, as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            kill_tree(self._process.pid)
            self._process.wait()
        self._process = None

    def log(self) -> str:
        """Everything it said so far, where it is quiet."""
        return self.log_path.read_text(errors="replace")

    def _written_at(self) -> tuple[int, int] | None:
        try:
            found = (self.data_dir / "dev.env").stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _wait_for_dev_env(self, process: subprocess.Popen[bytes], before: tuple[int, int] | None) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._written_at() == before:
            if process.poll() is not None:
                raise ConfigError(self._last_words())
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the system is not ready after {START_TIMEOUT_S:g} s: {self._last_words()}"
                )
            time.sleep(0.05)

    def _last_words(self) -> str:
        lines = [line for line in self.log().splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else "the system ended without a word"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
