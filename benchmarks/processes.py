"""Processes that are measured: started, held still, let go on, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from onceonly_jobs.local.processes import kill_tree

START_S = 90.0
STOP_S = 15.0


def clean_env(given: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of ours, and with the given variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")} | dict(
        given
    )


def wait_until(condition: Callable[[], bool], patience_s: float, needed: str, every_s: float = 0.02) -> None:
    """Raises RuntimeError when it takes longer."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {patience_s:g} s: {needed}")
        time.sleep(every_s)


class Part:
    """A process and all that it starts."""

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self.name, self._log = name, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(argv),
                env=clean_env(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], needed: str = "it is ready") -> None:
        """Raises RuntimeError, with the last words of its log, when it ends or is not ready in time."""

        def checked() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with status {self._process.returncode}")
            return ready()

        try:
            wait_until(checked, START_S, needed)
        except RuntimeError as error:
            raise RuntimeError(f"{self.name}: {error}\n{self.words()}") from None

    def words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def pause(self) -> None:
        """Hold it still, wherever it is."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        """End it in its own way, or else at once."""
        if self._process.poll() is not None:
            return
        self.resume()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and all that it started at once."""
        if self._process.poll() is None:
            kill_tree(self._process.pid)
            self._process.wait()
