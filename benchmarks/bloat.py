"""What a transaction that stays open costs: python -m benchmarks.bloat [--runs N] [--steps N]

Runs are taken, found due, claimed and completed, one after the other, in an embedded Postgres: first as it is, then
while another session keeps a snapshot open, so that no dead row and no dead index entry may be removed. Shown is, for
each step of so many runs, how long the relay's question and a claim took, and how many pages the question read.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.local.servers import EmbeddedPostgres
from onceonly_jobs.services import account, claims, outbox, runs
from onceonly_jobs.store import outbox as store
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.migrations import upgrade

ECHO = JobSpec(name="echo", queue="q")
WEEK_S = 604_800


def pages(database: Database) -> int:
    """How many pages the relay reads to find out that nothing is due."""
    statement = store.take_due(100, 2.0, [])
    query = sa.text(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement.query}")
    with database.engine.begin() as connection:
        [plan] = connection.execute(query, statement.params).scalar_one()
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def one_step(database: Database, caller: Caller, name: str, count: int) -> tuple[float, float]:
    """Median milliseconds of the relay's question and of a claim, while so many runs come and go."""
    asked, claimed = [], []
    for number in range(count):
        taking = runs.job_taking(caller, ECHO, key=f"{name}:{number}", ttl_s=60, metadata=None)
        database.run(runs.take, caller, taking)
        began = time.perf_counter()
        [due] = database.run(outbox.take_due, 100, 2.0, [])
        asked.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        claim = database.run(claims.claim, due.id, "echo", 15.0, None)
        claimed.append((time.perf_counter() - began) * 1000)
        assert claim is not None, "nobody else is here"
        database.run(claims.complete, claim, {}, WEEK_S)
    return statistics.median(asked), statistics.median(claimed)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a transaction that stays open costs.")
    parser.add_argument("--runs", type=int, default=2000, help="in a step")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder), {"synchronous_commit": "off"})
        server.start()
        try:
            url = sqlalchemy_url(server.owner_url)
            upgrade(url)
            database = Database(url, pool_size=1)
            database.run(account.ensure_tenant, "default", Plan.AGENCY)
            key = database.run(account.create_key, "default").api_key
            caller = database.run(account.authenticate, key)
            snapshot = sa.create_engine(url, isolation_level="REPEATABLE READ")
            for held in (False, True):
                with snapshot.connect() as other:
                    if held:
                        other.execute(sa.text("SELECT count(*) FROM runs"))
                    for step in range(given.steps):
                        asked, claimed = one_step(database, caller, f"{held}:{step}", given.runs)
                        print(
                            f"{'a snapshot is held' if held else 'nothing is held'}, after {(step + 1) * given.runs} "
                            f"runs: due? {asked:.2f} ms ({pages(database)} pages), claim {claimed:.2f} ms"
                        )
            database.close()
            snapshot.dispose()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
