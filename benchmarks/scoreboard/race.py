"""One round: real servers, a worker that is killed in mid-run and started again at once, and nothing else done."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoreboard.peers import Peer
from benchmarks.scoreboard.tally import Tally, done, read, tally
from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.local.postgres import EmbeddedPostgres
from onceonly_jobs.local.redis import EmbeddedRedis
from onceonly_jobs.store.migrations import upgrade

ADAPTERS = Path(__file__).parent / "adapters"
SETTLE_S = 5.0
"""After the last job is done: time for a second copy to show."""
START_S = 90.0
MIGRATING = threading.Lock()
"""Alembic is for one thread at a time."""


@dataclass(frozen=True)
class Race:
    """How many jobs of which length; the worker is killed once `kill_after` of them are done."""

    jobs: int = 100
    sleep_s: float = 0.2
    kill_after: int = 60
    wait_s: float = 45.0


class Round:
    """A peer's processes in a directory of their own."""

    def __init__(self, peer: Peer, race: Race, python: str, directory: Path) -> None:
        self._peer, self._race, self._directory = peer, race, directory
        self._python = python
        self._witness = directory / "witness"
        self._log = directory / "log"
        self._env: dict[str, str] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> Tally:
        """Raises RuntimeError, with what was logged, where the peer does not work at all."""
        with ExitStack() as stack:
            redis = stack.enter_context(EmbeddedRedis(self._directory / "redis"))
            postgres = stack.enter_context(EmbeddedPostgres(self._directory / "postgres"))
            self._env = self._environment(redis, postgres)
            stack.callback(self._kill, "worker", "scheduler")
            if self._peer.ours:
                with MIGRATING:
                    upgrade(sqlalchemy_url(postgres.owner_url), sqlalchemy_url(postgres.app_url))
                self._start("scheduler", "-m onceonly_jobs.cli.main beat --app onceonly_peer")
            self._call("getattr(peer, 'prepare', int)()")
            self._start_worker()
            self._call(f"peer.enqueue({self._race.jobs})")
            self._until(lambda: self._done() >= self._race.kill_after, START_S, "some jobs are done")
            killed_at = self._kill_in_mid_run()
            self._until(lambda: self._done() == self._race.jobs, self._race.wait_s)
            time.sleep(SETTLE_S)
            return tally(read(self._witness), self._race.jobs, killed_at)

    def _environment(self, redis: EmbeddedRedis, postgres: EmbeddedPostgres) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ONCEONLY_")}
        given = {
            "PYTHONPATH": str(ADAPTERS),
            "SCORE_REDIS_URL": redis.url,
            "SCORE_POSTGRES_URL": postgres.superuser_url,
            "SCORE_SLEEP_S": str(self._race.sleep_s),
            "SCORE_VARIANT": self._peer.variant,
            "SCORE_WITNESS": str(self._witness),
        }
        ours = {"ONCEONLY_DATABASE_URL": postgres.app_url, "ONCEONLY_BROKER_URL": redis.url}
        return inherited | given | (ours if self._peer.ours else {})

    def _start_worker(self) -> None:
        self._start("worker", self._peer.worker.format(redis=self._env["SCORE_REDIS_URL"]))

    def _start(self, part: str, arguments: str) -> None:
        with self._log.open("ab") as log:
            self._running[part] = subprocess.Popen(
                [self._python, *shlex.split(arguments)],
                cwd=ADAPTERS,
                env=self._env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _call(self, expression: str) -> None:
        code = f"import {self._peer.adapter} as peer; {expression}"
        with self._log.open("ab") as log:
            called = subprocess.run(
                [self._python, "-c", code], cwd=ADAPTERS, env=self._env, stdout=log, stderr=log, check=False
            )
        if called.returncode != 0:
            raise RuntimeError(self._words())

    def _kill_in_mid_run(self) -> float:
        """When. Killed while it is at work on a job, with its whole group, and started again at once."""
        self._until(self._at_work, START_S, "a job is under way")
        both = self._peer.kills_scheduler
        self._kill("worker", *(["scheduler"] if both else []))
        killed_at = time.time()
        if both:
            self._start("scheduler", "-m onceonly_jobs.cli.main beat --app onceonly_peer")
        self._start_worker()
        return killed_at

    def _at_work(self) -> bool:
        lines = read(self._witness)
        return len([line for line in lines if line[0] == "start"]) > len(lines) / 2

    def _kill(self, *parts: str) -> None:
        for part in parts:
            process = self._running.pop(part, None)
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _done(self) -> int:
        return len(done(read(self._witness)))

    def _until(self, condition: Callable[[], bool], patience_s: float, needed: str | None = None) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                if needed:
                    raise RuntimeError(f"not within {patience_s:g} s: {needed}\n{self._words()}")
                return
            time.sleep(0.02)

    def _words(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]
