"""What a rate of runs needs, and how long runs then wait: python -m benchmarks.simulate [COSTS.json] [--rates ...]

COSTS.json is what `python -m benchmarks.costs --json` measured;
--docs writes all of it into docs/SCALING.md.
Two models, both from these service times alone:

- How many processes: the demand of each part (rate times CPU per run) at the given utilisation.
- How long runs wait: runs arrive at random, wait for a free API process, then for a core of PostgreSQL, then for a
  process of a worker, then for PostgreSQL again; each serves in order of arrival, its times exponential.

Checked against what was measured: by the bottleneck law no rate exceeds servers / demand of any station, the machine
itself being one, with its cores and the demands of all that ran on it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RATES = (1_000, 10_000, 100_000)
DAY_S = 86_400
COUNTED = ("wal_bytes", "statements", "commits")
RETENTION_DAYS = 30
"""Of timelines and the feed; runs themselves are kept for less."""
POOL = 18
"""Connections of an API process: its pool of 10, and six over which locks and runs are asked for."""
SERVER_CORES = 32
SERVER_WAL_MB = 250
SERVER_DISK_TB = 16
"""What one PostgreSQL server is given, at most: its cores, what its log may take in MB/s, and what it may keep."""


@dataclass(frozen=True)
class Demand:
    """CPU seconds of one run at each station, and what it writes."""

    api_s: float
    accept_s: float
    worker_s: float
    execute_s: float
    scheduler_s: float
    wal_bytes: float
    stored_bytes: float

    @classmethod
    def of(cls, costs: dict[str, Any]) -> Demand:
        accept, execute = costs["accept"], costs["execute"]

        def cpu_s(*names: str, phases: tuple[dict[str, Any], ...] = (accept, execute)) -> float:
            return sum(float(phase["cpu_ms"][name]) for phase in phases for name in names) / 1000

        return cls(
            api_s=cpu_s("API"),
            accept_s=cpu_s("PostgreSQL", phases=(accept,)),
            worker_s=cpu_s("worker"),
            execute_s=cpu_s("PostgreSQL", phases=(execute,)),
            scheduler_s=cpu_s("scheduler"),
            wal_bytes=accept["wal_bytes"] + execute["wal_bytes"],
            stored_bytes=costs["table_bytes"] + costs["index_bytes"],
        )

    @property
    def postgres_s(self) -> float:
        return self.accept_s + self.execute_s


@dataclass(frozen=True)
class Plan:
    """What a rate needs."""

    rate: float
    api: int
    workers: int
    schedulers: int
    postgres_cores: int
    wal_mb: float
    shards: int
    disk_gb_a_day: float

    @classmethod
    def of(cls, demand: Demand, rate: float, utilisation: float) -> Plan:
        def servers(service_s: float) -> int:
            return max(1, math.ceil(rate * service_s / utilisation))

        cores, wal_mb = servers(demand.postgres_s), rate * demand.wal_bytes / 1e6
        return cls(
            rate=rate,
            api=servers(demand.api_s),
            workers=servers(demand.worker_s),
            schedulers=servers(demand.scheduler_s),
            postgres_cores=cores,
            wal_mb=wal_mb,
            shards=max(math.ceil(cores / SERVER_CORES), math.ceil(wal_mb / SERVER_WAL_MB)),
            disk_gb_a_day=rate * demand.stored_bytes * DAY_S / 1e9,
        )

    @property
    def connections(self) -> int:
        """A pool for each API process, one for each worker process and scheduler."""
        return self.api * POOL + self.workers + self.schedulers

    @property
    def kept_tb(self) -> float:
        return self.disk_gb_a_day * RETENTION_DAYS / 1000

    @property
    def bottleneck(self) -> str:
        """What is at its end first."""
        if self.kept_tb / SERVER_DISK_TB > self.shards:
            return "disk, at this retention"
        if self.shards > 1:
            by_log = self.wal_mb / SERVER_WAL_MB > self.postgres_cores / SERVER_CORES
            return "PostgreSQL's log" if by_log else "PostgreSQL's cores"
        return "workers' CPU" if self.workers >= self.api else "API's CPU"


class Station:
    """Servers with one queue, in order of arrival."""

    def __init__(self, servers: int) -> None:
        self.free, self.queue = servers, deque[int]()
        self.busy_s = 0.0


def simulate(demand: Demand, plan: Plan, runs: int, seed: int = 7) -> dict[str, float]:
    """Times of this many runs in milliseconds, and how busy the stations were."""
    rng = random.Random(seed)
    stations = {
        "API": Station(plan.api),
        "PostgreSQL": Station(plan.postgres_cores),
        "workers": Station(plan.workers),
    }
    route = (
        ("API", demand.api_s),
        ("PostgreSQL", demand.accept_s),
        ("workers", demand.worker_s),
        ("PostgreSQL", demand.execute_s),
    )
    arrived, leg = [0.0] * runs, [0] * runs
    accepted, started, finished = [0.0] * runs, [0.0] * runs, [0.0] * runs
    events: list[tuple[float, int, bool]] = []
    now = 0.0
    for run in range(runs):
        now += rng.expovariate(plan.rate)
        arrived[run] = now
        events.append((now, run, False))
    heapq.heapify(events)

    def begin(at: float, run: int) -> None:
        name, mean_s = route[leg[run]]
        station, taken_s = stations[name], rng.expovariate(1 / mean_s) if mean_s else 0.0
        station.busy_s += taken_s
        if leg[run] == 2:
            started[run] = at
        heapq.heappush(events, (at + taken_s, run, True))

    while events:
        now, run, served = heapq.heappop(events)
        if served:
            station = stations[route[leg[run]][0]]
            if station.queue:
                begin(now, station.queue.popleft())
            else:
                station.free += 1
            leg[run] += 1
            if leg[run] == 2:
                accepted[run] = now
            if leg[run] == len(route):
                finished[run] = now
                continue
        station = stations[route[leg[run]][0]]
        if station.free:
            station.free -= 1
            begin(now, run)
        else:
            station.queue.append(run)
    return _times(arrived, accepted, started, finished) | {
        f"{name} busy": station.busy_s / now / servers
        for (name, station), servers in zip(
            stations.items(), (plan.api, plan.postgres_cores, plan.workers), strict=True
        )
    }


def _times(
    arrived: list[float], accepted: list[float], started: list[float], finished: list[float]
) -> dict[str, float]:
    def percentiles(what: str, later: list[float], earlier: list[float]) -> dict[str, float]:
        taken = sorted(end - begin for end, begin in zip(later, earlier, strict=True))
        return {
            f"{what} p50": taken[len(taken) // 2] * 1000,
            f"{what} p99": taken[int(len(taken) * 0.99)] * 1000,
        }

    return (
        percentiles("accepted", accepted, arrived)
        | percentiles("waiting for a worker", started, accepted)
        | percentiles("finished", finished, arrived)
    )


def bound(phase: dict[str, Any], cores: int, single: dict[str, int]) -> tuple[float, str]:
    """The highest rate by the bottleneck law, and whose: single says how many processes a part has."""
    demands = {name: ms / 1000 for name, ms in phase["cpu_ms"].items()}
    limits = {f"{name}, {count} at a time": count / demands[name] for name, count in single.items()}
    limits[f"the machine's {cores} cores"] = cores / sum(demands.values())
    who = min(limits, key=lambda name: limits[name])
    return limits[who], who


def per_run(costs: dict[str, Any]) -> str:
    """What one run costs, and on what that was measured."""
    machine = costs["machine"]
    where = ", ".join(f"{name} {machine[name]}" for name in ("CPU", "cores", "Python", "PostgreSQL"))
    accept, execute = costs["accept"], costs["execute"]
    lines = [f"| of one run, over {costs['runs']:,} | accepted | executed | both |", "|---|--:|--:|--:|"]
    rows = [
        (f"CPU of {name}, ms", accept["cpu_ms"][name], execute["cpu_ms"][name]) for name in accept["cpu_ms"]
    ]
    rows += [(f"{name.replace('_', ' ')}", accept[name], execute[name]) for name in COUNTED]
    for what, first, second in rows:
        digits = 0 if first + second > 100 else 2
        lines.append(
            f"| {what} | {first:,.{digits}f} | {second:,.{digits}f} | {first + second:,.{digits}f} |"
        )
    lines.append(f"| bytes kept in tables | | | {costs['table_bytes']:,.0f} |")
    lines.append(f"| bytes kept in indexes | | | {costs['index_bytes']:,.0f} |")
    return f"Measured on: {where}.\n\n" + "\n".join(lines)


def filled(text: str, tables: dict[str, str]) -> str:
    """The document with each table between its two marks."""
    for name, table_ in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not (begin and end):
            raise ValueError(f"no place for {name}")
        text = f"{before}{begin}\n{table_}\n{end}{after}"
    return text


def check(costs: dict[str, Any]) -> str:
    """The model beside what was measured on the same machine."""
    cores = int(costs["machine"]["cores"])
    lines = [
        "| measured on this machine | measured, runs/s | bound by the model | by | measured / model |",
        "|---|--:|--:|---|--:|",
    ]
    for name, single in (("accept", {"API": 1}), ("execute", {"worker": 3})):
        phase = costs[name]
        most, who = bound(phase, cores, single)
        measured = phase["per_second"]
        lines.append(f"| {name} | {measured:,.0f} | {most:,.0f} | {who} | {measured / most:.2f} |")
    return "\n".join(lines)


def table(demand: Demand, rates: list[int], utilisation: float, runs: int) -> str:
    lines = [
        "| runs/s | API processes | worker processes | schedulers | PostgreSQL cores | servers (shards) | connections "
        "| log MB/s | disk GB/day | kept, TB | accepted p50, p99 ms | wait for a worker p99 ms | bottleneck |",
        "|--:" * 12 + "|---|",
    ]
    for rate in rates:
        plan = Plan.of(demand, rate, utilisation)
        seen = simulate(demand, plan, runs)
        lines.append(
            f"| {rate:,} | {plan.api:,} | {plan.workers:,} | {plan.schedulers:,} | {plan.postgres_cores:,} "
            f"| {plan.shards} | {plan.connections:,} | {plan.wal_mb:,.1f} | {plan.disk_gb_a_day:,.0f} "
            f"| {plan.kept_tb:,.1f} "
            f"| {seen['accepted p50']:.1f}, {seen['accepted p99']:.1f} | {seen['waiting for a worker p99']:.1f} "
            f"| {plan.bottleneck} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("costs", type=Path, nargs="?", default=ROOT / "benchmarks" / "costs.json")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--utilisation", type=float, default=0.6, help="of every station (%(default)s)")
    parser.add_argument("--runs", type=int, default=100_000, help="to simulate at each rate")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/SCALING.md too")
    options = parser.parse_args()
    costs = json.loads(options.costs.read_text())
    demand = Demand.of(costs)
    tables = {
        "costs": per_run(costs),
        "plan": table(demand, options.rates, options.utilisation, options.runs),
        "check": check(costs),
    }
    print("\n\n".join(tables.values()))
    if options.docs:
        path = ROOT / "docs" / "SCALING.md"
        path.write_text(filled(path.read_text(), tables))


if __name__ == "__main__":
    main()
