"""What one run costs, for docs/SCALING.md and the simulation: python -m benchmarks.costs [--runs N] [--json FILE]

Runs are accepted over HTTP, and then executed, each phase by itself. Measured are, for each run, the CPU time of each
part, the bytes written to the log of PostgreSQL, statements, and, once all is done, what tables and indexes grew by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

from benchmarks import http, load
from benchmarks.cpu import Processes, cpu_s, this_process
from benchmarks.end_to_end import consume
from benchmarks.machine import facts
from benchmarks.product import Product
from benchmarks.servers import Servers
from benchmarks.simulate import per_run
from benchmarks.witness import Witness

SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.max": "5000"}
LOAD = "load generator"
OURS = "SELECT oid FROM pg_database WHERE datname = 'onceonly'"


@dataclass(frozen=True)
class Cost:
    """Of one run in one phase. CPU in milliseconds by part."""

    per_second: float
    cpu_ms: dict[str, float]
    wal_bytes: float
    statements: float
    commits: float


@dataclass(frozen=True)
class Costs:
    """Of one run from acceptance to its end, and what is kept of it."""

    runs: int
    accept: Cost
    execute: Cost
    table_bytes: float
    index_bytes: float
    machine: dict[str, str]


class Meter:
    """Reads all counters at once."""

    def __init__(self, product: Product, servers: Servers, parts: dict[str, Processes]) -> None:
        self._url, self._parts = product.superuser_url, parts

    def read(self) -> dict[str, float]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'), "
                f"(SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE dbid = ({OURS}) AND toplevel), "
                "(SELECT xact_commit FROM pg_stat_database WHERE datname = 'onceonly')"
            ).fetchone()
        assert row is not None
        cpu = {f"cpu {name}": cpu_s(processes) for name, processes in self._parts.items()}
        return cpu | {"wal": float(row[0]), "statements": float(row[1]), "commits": float(row[2])}

    def sizes(self) -> tuple[float, float]:
        """Of all tables, and of their indexes."""
        with psycopg.connect(self._url) as connection:
            row = connection.execute(
                "SELECT sum(pg_table_size(c.oid)), sum(pg_indexes_size(c.oid)) FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND relkind = 'r'"
            ).fetchone()
        assert row is not None
        return float(row[0]), float(row[1])


def cost(before: dict[str, float], after: dict[str, float], runs: int, per_second: float) -> Cost:
    """The difference of two readings, for each run."""
    each = {name: (after[name] - before[name]) / runs for name in before}
    cpu = {name.removeprefix("cpu "): s * 1000 for name, s in each.items() if name.startswith("cpu ")}
    return Cost(per_second, cpu, each["wal"], each["statements"], each["commits"])


def measure(runs: int) -> Costs:
    with tempfile.TemporaryDirectory() as directory, Servers(Path(directory), SETTINGS) as servers:
        product = Product(servers)
        with psycopg.connect(product.superuser_url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        try:
            return _measured(product, servers, runs)
        finally:
            product.stop()


def _measured(product: Product, servers: Servers, runs: int) -> Costs:
    api, worker, scheduler = product.api(), product.worker(), product.scheduler()
    parts = {
        "API": api.part.tree,
        "worker": worker.tree,
        "scheduler": scheduler.tree,
        "PostgreSQL": servers.postgres_processes,
        "Redis": servers.redis_processes,
        LOAD: this_process,
    }
    load.run(http.lock_target(api, product.api_key, "warm"), 1).case()
    http.accept(product, api, "warm", 30, 500, 10**8)
    product.settle()
    worker.pause()
    meter, witness = Meter(product, servers, parts), Witness(product.witness)
    witness.forget()
    sizes = meter.sizes()
    start = meter.read()
    accepted, count = http.accept(product, api, "cost", 600, runs)
    time.sleep(2)  # the publisher's last batch
    middle = meter.read()
    done = consume(servers, [worker], witness, range(count), product.unfinished)
    time.sleep(2)
    end = meter.read()
    grown = [after - before for before, after in zip(sizes, meter.sizes(), strict=True)]
    return Costs(
        count,
        cost(start, middle, count, accepted["per_second"]),
        cost(middle, end, count, done["per_second"]),
        grown[0] / count,
        grown[1] / count,
        facts() | servers.versions(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="write the costs here, for python -m benchmarks.simulate")
    options = parser.parse_args()
    costs = measure(options.runs)
    print(per_run(asdict(costs)))
    if options.json:
        options.json.write_text(json.dumps(asdict(costs), indent=1) + "\n")


if __name__ == "__main__":
    main()
