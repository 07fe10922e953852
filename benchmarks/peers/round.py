"""One peer in one round: jobs enqueued one per call, and then executed, from a standing start."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks import latency
from benchmarks.cpu import metered
from benchmarks.end_to_end import consume
from benchmarks.figures import Measured
from benchmarks.peers.catalogue import Peer
from benchmarks.peers.driver import ADAPTERS, Driver
from benchmarks.processes import Part
from benchmarks.servers import Servers
from benchmarks.witness import Witness

WARM_JOBS = 40
WARM_PATIENCE_S = 60.0
LATENCIES = 30
NUMBERS = 1_000_000
"""Each round's jobs are numbered from a multiple of this."""


@dataclass(frozen=True)
class Effort:
    """How much is asked of it."""

    seconds: float
    jobs: int


class PeerRound:
    """A peer's worker and producer over databases that are empty."""

    def __init__(self, peer: Peer, python: str, servers: Servers, directory: Path) -> None:
        self._peer, self._python, self._servers, self._directory = peer, python, servers, directory
        self._witness_path = directory / "witness"
        self._witness = Witness(self._witness_path)
        self._postgres = servers.database(f"peer_{peer.name.replace('-', '_')}")
        self._env = {
            "PYTHONPATH": str(ADAPTERS),
            "BENCH_REDIS_URL": servers.redis_database(peer.name),
            "BENCH_POSTGRES_URL": self._postgres,
            "BENCH_VARIANT": peer.variant,
            "BENCH_WITNESS": str(self._witness_path),
        }

    def measure(self, effort: Effort) -> Measured:
        """Raises RuntimeError, with its last words, where the peer does not work."""
        label = self._peer.label
        with ExitStack() as stack:
            driver = Driver(self._python, self._peer.adapter, self._env, self._directory / "driver.log")
            stack.enter_context(driver)
            worker = self._start_worker(stack, driver)
            limit = min(effort.jobs, self._peer.limit or effort.jobs)
            meter = metered(self._servers, driver.processes)
            enqueued = driver.ask("enqueue", first=0, seconds=effort.seconds, limit=limit)
            costs = meter.each_us(enqueued["jobs"])
            measured: Measured = {}
            if self._peer.enqueues:
                rate = enqueued["timed"] / enqueued["seconds"]
                measured[f"enqueue: {label}"] = {"per_second": rate, "jobs": enqueued["timed"]} | costs
            if worker is None:
                return measured
            jobs = range(enqueued["jobs"])
            stored = self._unfinished(WARM_JOBS + len(jobs))
            measured[f"end to end: {label}"] = consume(self._servers, [worker], self._witness, jobs, stored)
            measured |= self._waiting(driver)
        return measured

    def _start_worker(self, stack: ExitStack, driver: Driver) -> Part | None:
        """Started, warm, and held still."""
        if not self._peer.worker:
            return None
        driver.ask("run", name="prepare")
        command = [self._python, *self._peer.worker.split()]
        worker = Part(self._peer.name, command, self._env, self._directory / "worker.log", ADAPTERS)
        stack.callback(worker.kill)
        driver.ask("enqueue", first=NUMBERS, seconds=WARM_PATIENCE_S, limit=WARM_JOBS)
        worker.wait_until(lambda: self._witness.size() >= WARM_JOBS, "its first jobs are done")
        worker.pause()
        self._witness.forget()
        return worker

    def _waiting(self, driver: Driver) -> Measured:
        """How long jobs and callers wait, where the peer is asked for that."""
        if not self._peer.waits:
            return {}
        first = 2 * NUMBERS
        return {
            f"to start: {self._peer.label}": latency.to_start(driver, self._witness, first, LATENCIES),
            f"to result: {self._peer.label}": latency.to_result(driver, first + NUMBERS, LATENCIES),
        }

    def _unfinished(self, jobs: int) -> Stored | None:
        if not self._peer.unfinished:
            return None
        return Stored(self._postgres, self._peer.unfinished.format(jobs=jobs))


@dataclass(frozen=True)
class Stored:
    """Asks the peer's own tables how many jobs are not finished."""

    url: str
    query: str

    def __call__(self) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(self.query.encode()).fetchone()
        return int(row[0]) if row else -1
