"""Our own round: HTTP beside the floor, jobs, waiting, tool calls, memory, and twice as many processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import http, latency, load, memory
from benchmarks.cpu import metered, this_process
from benchmarks.end_to_end import consume
from benchmarks.figures import Case, Measured
from benchmarks.load import Target
from benchmarks.peers.driver import Driver
from benchmarks.processes import Part
from benchmarks.product import APP, Api, Product
from benchmarks.witness import Witness

NAME = "OnceOnly Jobs"
LATENCIES = 200
AGENTS = 32
FIRST = 1_000_000
"""Numbers of jobs that are not part of a batch begin here."""


@dataclass(frozen=True)
class Effort:
    """How long each case is under load, and how many jobs at most make a batch."""

    seconds: float
    jobs: int


class OurRound:
    """The product in one round, its processes started afresh."""

    def __init__(self, product: Product, prefix: str, effort: Effort) -> None:
        self._product, self._prefix, self._effort = product, prefix, effort
        self._witness = Witness(product.witness)

    def measure(self, groups: frozenset[str]) -> Measured:
        measured: Measured = {}
        with ExitStack() as stack:
            stack.callback(self._product.stop)
            floor, api = self._product.floor(), self._product.api()
            worker, scheduler = self._product.worker(), self._product.scheduler()
            http.warm(self._product, floor, api, f"{self._prefix}-warm")
            self._warm_worker(api)
            if "http" in groups:
                measured |= http.measure(self._product, floor, api, self._prefix, self._effort.seconds)
            if "jobs" in groups:
                measured |= self._jobs(api, worker)
            if "latency" in groups:
                measured |= self._latency(api)
            if "tools" in groups:
                measured |= self._tools(api, worker)
            if "memory" in groups:
                measured |= self._memory(api, worker, scheduler)
            if "twice" in groups:
                measured |= self._twice(api, worker)
        return measured

    def _warm_worker(self, api: Api) -> None:
        http.accept(self._product, api, f"{self._prefix}-warm", 1, 100, FIRST)
        self._product.settle()

    def _driver(self, api: Api, prefix: str) -> Driver:
        env = self._product.driver_env(api) | {"BENCH_PREFIX": prefix}
        return Driver(sys.executable, APP, env, self._product.directory / "driver.log")

    def _jobs(self, api: Api, worker: Part) -> Measured:
        """One producer with one call after the other, then 32 connections; then all of it from the standing start."""
        prefix = f"{self._prefix}-run"
        worker.pause()
        self._witness.forget()
        with self._driver(api, prefix) as driver:
            answer = driver.ask(
                "enqueue", first=0, seconds=self._effort.seconds / 2, limit=self._effort.jobs // 4
            )
        alone: Case = {"per_second": answer["timed"] / answer["seconds"], "jobs": answer["timed"]}
        accepted, more = http.accept(
            self._product, api, prefix, self._effort.seconds, self._effort.jobs, answer["jobs"]
        )
        jobs = answer["jobs"] + more
        done = consume(self._product.servers, [worker], self._witness, range(jobs), self._product.unfinished)
        self._check_trail(prefix, jobs)
        return {
            "http: ai/run, accepted": accepted,
            f"enqueue: {NAME}, one caller": alone,
            f"enqueue: {NAME}, 32 connections": accepted | {"jobs": more},
            f"end to end: {NAME}": done,
        }

    def _check_trail(self, prefix: str, jobs: int) -> None:
        """Raises RuntimeError unless each run has one decision and one outcome in the audit trail."""
        trail = self._product.count(
            "SELECT count(*) FROM audit_decisions d JOIN audit_outcomes o ON o.decision_id = d.id "
            "WHERE d.run_key LIKE %s AND o.outcome = 'completed'",
            f"{prefix}:%",
        )
        if trail != jobs:
            raise RuntimeError(f"{jobs} runs were done, and the audit trail has the outcomes of {trail}")

    def _latency(self, api: Api) -> Measured:
        with self._driver(api, f"{self._prefix}-wait") as driver:
            return {
                f"to start: {NAME}": latency.to_start(driver, self._witness, FIRST, LATENCIES),
                f"to result: {NAME}": latency.to_result(driver, 2 * FIRST, LATENCIES),
            }

    def _tools(self, api: Api, worker: Part) -> Measured:
        """Governed calls of a Python function over HTTP: decided, carried out by the worker, and answered."""
        agents = [f"{self._prefix}-agent-{number}" for number in range(AGENTS)]
        self._permit(api, agents)
        target = tool_target(api, self._product.api_key, agents)
        load.run(target, 0.5).case()
        later = tool_target(api, self._product.api_key, agents, FIRST)
        meter = metered(self._product.servers, api.part.tree, worker_us=worker.tree, load_us=this_process)
        done = load.run(later, self._effort.seconds)
        costs = meter.each_us(done.asked)
        self._product.settle()
        return {"http: tool call, decided and carried out": done.case() | costs}

    def _permit(self, api: Api, agents: Sequence[str]) -> None:
        body = (
            b'{"allowed_tools":["noop_tool"],"max_actions_per_hour":1000000,'
            b'"max_spend_usd_per_day":1000000.0,"max_calls_per_tool":{"noop_tool":1000000}}'
        )
        for agent in agents:
            target = Target(
                api.port, f"/v1/policies/{agent}", self._product.api_key, lambda _: body, b'"policy"'
            )
            load.run(target, 10, 1, 1).case()

    def _memory(self, api: Api, worker: Part, scheduler: Part) -> Measured:
        return {
            "memory: API process": memory.of_api(api.part),
            "memory: worker child": memory.of_children(worker),
            "memory: worker's own process": memory.of_worker(worker),
            "memory: scheduler": memory.of_worker(scheduler),
        }

    def _twice(self, api: Api, worker: Part) -> Measured:
        """Two API processes beside one; two workers of one process each beside one such worker."""
        self._product.stop(api.part, worker)
        measured: Measured = {}
        for processes in (1, 2):
            prefix = f"{self._prefix}-api{processes}"
            api = self._product.api(processes)
            load.run(http.lock_target(api, self._product.api_key, f"{prefix}-warm"), http.WARM_S).case()
            measured[f"processes: check-lock, {processes} API"] = http.locked(
                self._product, api, prefix, self._effort.seconds
            )
            if processes == 1:
                self._product.stop(api.part)
        workers: list[Part] = []
        for number in (1, 2):
            workers.append(self._product.worker(1))
            prefix = f"{self._prefix}-workers{number}"
            measured[f"processes: end to end, {number} worker of 1"] = self._batch(api, workers, prefix)
        return measured

    def _batch(self, api: Api, workers: Sequence[Part], prefix: str) -> Case:
        http.accept(self._product, api, f"{prefix}-warm", 1, 50, FIRST)
        self._product.settle()
        for worker in workers:
            worker.pause()
        self._witness.forget()
        _, jobs = http.accept(self._product, api, prefix, self._effort.seconds, 2 * self._effort.jobs)
        return consume(self._product.servers, workers, self._witness, range(jobs), self._product.unfinished)


def tool_target(api: Api, api_key: str, agents: Sequence[str], first: int = 0) -> Target:
    """ai/run by tool, the agents in turn."""
    template = b'{"agent_id":"%b","tool":"noop_tool","args":{"n":%d},"spend_usd":0.001}'
    names = [agent.encode() for agent in agents]
    return Target(
        api.port,
        "/v1/ai/run",
        api_key,
        lambda n: template % (names[n % len(names)], first + n),
        b'"decision":"executed"',
    )
