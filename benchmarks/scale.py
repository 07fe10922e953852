"""Whether many stored keys and runs slow anything: a part of python -m benchmarks --full [--sizes N,N,N]

One database for each size, on one server, filled beforehand; rounds of all sizes are interleaved, and ratios are of a
round to itself. Beside throughput, the queries for a run's timeline and for an agent's audit log, through the API.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import http, load
from benchmarks.figures import Case, Measured, percentile_ms
from benchmarks.filling import AGENTS, PER_RUN_BYTES, Filler
from benchmarks.product import Api, Product
from benchmarks.servers import Servers
from onceonly_jobs.local.ports import LOOPBACK

QUERIES = 300
SEAL_S = 7.0
"""Until the sample's audit rows are sealed, as those of real runs are."""
STORED = "stored-"


def check_room(sizes: Sequence[int], directory: Path) -> None:
    """Raises RuntimeError where the disk has not room for all of it, and says how much that is."""
    needed, free = sum(sizes) * PER_RUN_BYTES * 1.3, shutil.disk_usage(directory).free
    if needed > free:
        raise RuntimeError(f"about {needed / 1e9:.0f} GB are needed, and {free / 1e9:.0f} GB are free")


@dataclass
class Stored:
    """A system with so many runs and locks in its database."""

    size: int
    product: Product
    api: Api
    client: httpx.Client

    @classmethod
    def made(cls, servers: Servers, size: int, say: Callable[[str], None]) -> Stored:
        product = Product(servers, f"scale_{size}")
        api, worker, scheduler = product.api(), product.worker(), product.scheduler()
        _sample(product, api)
        product.stop(worker, scheduler)
        filler = Filler(product.superuser_url, "sample:00000000", "sample:00000000")
        took_s = filler.fill(size, STORED)
        say(f"{size:,} runs and locks stored in {took_s:.0f} s: {filler.size() / 1e9:.1f} GB")
        filler.close()
        headers = {"Authorization": f"Bearer {product.api_key}"}
        client = httpx.Client(base_url=f"http://{LOOPBACK}:{api.port}/v1", headers=headers, timeout=60)
        stored = cls(size, product, api, client)
        http.accept(product, api, f"warm-{size}", 1, 500)
        load.run(http.lock_target(api, product.api_key, f"warm-{size}"), 1).case()
        return stored

    def measure(self, prefix: str, seconds: float) -> Measured:
        rng = random.Random(prefix)
        numbers = [rng.randint(1, self.size) for _ in range(QUERIES)]
        name = f"{self.size:,} stored"
        return {
            f"scale: check-lock, {name}": http.locked(self.product, self.api, f"{prefix}-lock", seconds),
            f"scale: ai/run, {name}": http.accept(self.product, self.api, f"{prefix}-run", seconds, 10**9)[0],
            f"scale: timeline, {name}": self._asked([f"/runs/{STORED}{n}" for n in numbers]),
            f"scale: audit log, {name}": self._asked([f"/agents/agent-{n % AGENTS}/logs" for n in numbers]),
        }

    def _asked(self, paths: Sequence[str]) -> Case:
        taken = []
        for path in paths:
            began = time.perf_counter()
            answer = self.client.get(path)
            taken.append(time.perf_counter() - began)
            if answer.status_code != 200 or len(answer.content) < 100:
                raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")
        taken.sort()
        return {"p50_ms": percentile_ms(taken, 0.5), "p99_ms": percentile_ms(taken, 0.99)}


def _sample(product: Product, api: Api) -> None:
    """A run of an agent that is done and sealed, and a lock."""
    body = b'{"key":"sample:00000000","metadata":{"task":"noop","payload":{},"agent_id":"agent-0"}}'
    target = load.Target(api.port, "/v1/ai/run", product.api_key, lambda _: body, b'"status":"acquired"')
    load.run(target, 10, 1, 1).case()
    load.run(http.lock_target(api, product.api_key, "sample"), 10, 1, 1).case()
    product.settle()
    time.sleep(SEAL_S)


def measure(
    servers: Servers, sizes: Sequence[int], rounds: int, seconds: float, say: Callable[[str], None]
) -> list[Measured]:
    """Rounds of all sizes."""
    check_room(sizes, servers.directory)
    stored = [Stored.made(servers, size, say) for size in sizes]
    try:
        measured: list[Measured] = []
        for number in range(rounds):
            this: Measured = {}
            for one in stored if number % 2 else reversed(stored):
                this |= one.measure(f"s{number}", seconds)
            measured.append(this)
            say(f"scale, round {number + 1} of {rounds}: done")
        return measured
    finally:
        for one in stored:
            one.client.close()
            one.product.stop()
