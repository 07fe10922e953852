"""Single parts of a system, started as an operator starts them: `onceonly-jobs api`, `onceonly-jobs worker`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from onceonly_jobs.local.ports import free_port
from onceonly_jobs.local.processes import kill_tree

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class Part:
    """A running process of ours and its log."""

    def __init__(
        self,
        argv: list[str],
        env: Mapping[str, str],
        log_path: Path,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.log_path = log_path
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")}
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                env=clean | dict(env),
                cwd=cwd,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it answers. Fails, with its log, when it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            assert self.process.poll() is None, f"it ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"it does not answer:\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self) -> None:
        """End it in its orderly way, or at once where it does not end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """`kill -9` it and every process it started."""
        kill_tree(self.process.pid)
        self.process.wait()


def command(*words: str) -> list[str]:
    """A line of `onceonly-jobs`."""
    return [sys.executable, "-m", "onceonly_jobs.cli.main", *words]


@contextmanager
def api(variables: Mapping[str, str], directory: Path) -> Iterator[str]:
    """One more API process over the same servers; its base URL, ending in /v1."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    part = Part(command("api", "--port", str(port)), variables, directory / f"api-{port}.log")
    try:
        part.wait_until(lambda: answers(f"{origin}/ready"))
        yield f"{origin}/v1"
    finally:
        part.stop()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
