"""Starts the system's parts as forks of a process that has loaded their modules: most of what a start costs.

Such a part is a process like any other, run from its module's top to the interpreter's end. Only what is imported is
there already, so nothing that depends on the environment may be: neither the apps of tests nor what they register.
Python's own fork server won't do: its children end without what `atexit` was told.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

LOADED = (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.beat",
    "celery.bin.worker",
    "celery.concurrency.prefork",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "onceonly_jobs.api.app",
    "onceonly_jobs.api.protocol",
    "onceonly_jobs.cli.parts",
    "onceonly_jobs.worker.app",
    "onceonly_jobs.worker.beat",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.server",
    "uvloop",
)
AT_THE_START = ("PYTHON", "LD_", "OTEL_", "PROMETHEUS_", "TZ", "MALLOC_")
"""Variables that are looked at before the part's own code begins."""


class Forked:
    """As much of `subprocess.Popen` as is needed, of a process that is the fork server's child."""

    def __init__(self, pid: int, ask: Callable[[dict[str, Any]], Any]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ask = ask

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return status


class ForkServer:
    """Started with the first part, and ended with the process that it is of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None
        self._env: dict[str, str] = {}

    def start(self, argv: list[str], cwd: Path, env: Mapping[str, str], log: Path) -> Forked | None:
        """Start `python -m module ...`; None where this can't be done here as it would be done by itself."""
        if argv[:2] != [sys.executable, "-m"]:
            return None
        with self._lock:
            if self._server is None:
                self._start(cwd, env)
        if _at_the_start(env) != _at_the_start(self._env):
            return None
        asked = {"argv": argv[2:], "cwd": str(cwd), "env": dict(env), "log": str(log)}
        return Forked(self._ask(asked), self._ask)

    def _start(self, cwd: Path, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "support.fork_server"],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self._server.kill)

    def _ask(self, what: dict[str, Any]) -> Any:
        server = self._server
        assert server is not None
        assert server.stdin is not None
        assert server.stdout is not None
        with self._lock:
            server.stdin.write(json.dumps(what) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())


def _at_the_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_THE_START)}


def serve() -> list[str]:
    """Answer one question after the other. Returns in a child, what it is to run."""
    ended: dict[int, int] = {}
    for line in sys.stdin:
        what = json.loads(line)
        if "poll" not in what:
            begun, begins = os.pipe()
            pid = os.fork()
            if pid == 0:
                _become(what)
                os.close(begun)
                os.close(begins)
                return list(what["argv"])
            os.close(begins)
            os.read(begun, 1)  # until it can be signalled as a group
            os.close(begun)
            answer: int | None = pid
        else:
            answer = ended.get(what["poll"])
            if answer is None:
                pid, status = os.waitpid(what["poll"], os.WNOHANG)
                if pid:
                    answer = ended[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps(answer), flush=True)
    os._exit(0)


def _become(what: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(what["cwd"])
    os.environ.clear()
    os.environ.update(what["env"])
    log = os.open(what["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)


if __name__ == "__main__":
    for name in LOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    module, *arguments = serve()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
