"""A process that produces jobs: `adapters/drive.py` in the peer's own environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.processes import clean_env

ADAPTERS = Path(__file__).parent / "adapters"


class Driver:
    """Takes commands one at a time."""

    def __init__(self, python: str, adapter: str, env: Mapping[str, str], log: Path) -> None:
        self._adapter, self._log = adapter, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, str(ADAPTERS / "drive.py"), adapter],
                env=clean_env(env) | {"PYTHONPATH": str(ADAPTERS)},
                cwd=ADAPTERS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self._process.pid)]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What came of a command. Raises RuntimeError with the end of the log where the process could not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            words = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self._adapter} could not {do}:\n{words}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        try:
            self.ask("open")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.ask("close")
        finally:
            self._end()

    def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
