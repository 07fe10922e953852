"""Whether many stored keys slow a lock: python -m benchmarks.keys [--keys N] [--rounds N] [--calls N] [--durable]

Two databases of one embedded Postgres, one with 1,000 stored locks and one with a million. In each round both get the
same number of check-locks through Database.run, in turns of a hundred, of new keys and of stored ones at random.
Measured is each call's time; what slows both at once is not in a round's ratios. Without
--durable a commit does not wait for the disk, so that what is compared is the statement.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa

from onceonly_jobs.config import sqlalchemy_url
from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.local.servers import EmbeddedPostgres
from onceonly_jobs.services import account, locks
from onceonly_jobs.store import locks as store
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.migrations import upgrade

FEW = 1000
TURN = 100
DAY_S = 86_400

FILL = """
INSERT INTO locks (tenant_id, key, ttl_s, first_seen_at, locked_until_at)
SELECT 'default', md5(n::text), 86400, now(), now() + interval '1 day' FROM generate_series(1, {keys}) n
"""


class Stored:
    """A database with so many locks in it."""

    def __init__(self, server: EmbeddedPostgres, keys: int) -> None:
        self.keys = keys
        name = f"keys_{keys}"
        admin = sa.create_engine(sqlalchemy_url(server.superuser_url), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        url = (
            sa.make_url(sqlalchemy_url(server.superuser_url))
            .set(database=name)
            .render_as_string(hide_password=False)
        )
        upgrade(url)
        self.database = Database(url, pool_size=1)
        with self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(FILL.format(keys=keys))
            connection.exec_driver_sql("VACUUM ANALYZE")
        self.database.run(account.ensure_tenant, "default", Plan.AGENCY)
        key = self.database.run(account.create_key, "default").api_key
        self.caller = self.database.run(account.authenticate, key)

    def pages(self) -> int:
        """How many pages of tables and indexes a check-lock of a new key reads or changes."""
        statement = store.check([store.Check(tenant_id="default", key="a key for its pages", ttl_s=DAY_S)])
        query = sa.text(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement.query}")
        with self.database.engine.begin() as connection:
            [plan] = connection.execute(query, statement.params).scalar_one()
        return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])

    def times_ms(self, keys: Iterable[str], expected: str) -> list[float]:
        taken = []
        for key in keys:
            request = CheckLockRequest(key=key, ttl=DAY_S)
            began = time.perf_counter()
            answer = self.database.run(locks.check, self.caller, request, None)
            taken.append((time.perf_counter() - began) * 1000)
            assert answer.status == expected, answer
        return taken


def md5(database: Stored, rng: random.Random) -> str:
    return hashlib.md5(str(rng.randint(1, database.keys)).encode(), usedforsecurity=False).hexdigest()


def one_round(
    number: int, calls: int, both: list[Stored], rng: random.Random
) -> dict[str, list[list[float]]]:
    """Times of new and of stored keys, for each database."""
    times: dict[str, list[list[float]]] = {"new": [[], []], "stored": [[], []]}
    for turn in range(calls // TURN):
        for which, stored in enumerate(both if turn % 2 else reversed(both)):
            which = which if turn % 2 else 1 - which
            fresh = [f"{number}:{turn}:{n}:{rng.random()}" for n in range(TURN)]
            times["new"][which] += stored.times_ms(fresh, "locked")
            known = [md5(stored, rng) for _ in range(TURN)]
            times["stored"][which] += stored.times_ms(known, "duplicate")
    return times


def tenth(times: list[float]) -> float:
    """What the fastest tenth stayed below: what else the machine does is hardly in it."""
    return sorted(times)[len(times) // 10]


def shown(times: list[float]) -> str:
    ordered = sorted(times)
    middle, late = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return f"fastest tenth below {tenth(ordered):.3f} ms, median {middle:.3f} ms, 99% {late:.3f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether many stored keys slow a lock.")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=2000, help="of each kind, to each database, a round")
    parser.add_argument("--durable", action="store_true")
    given = parser.parse_args()
    settings = {"synchronous_commit": "on" if given.durable else "off", "autovacuum": "on"}
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder), settings)
        server.start()
        try:
            both = [Stored(server, FEW), Stored(server, given.keys)]
            rng = random.Random(7)
            one_round(-1, 2 * TURN, both, rng)  # what is read for the first time
            rounds = [one_round(number, given.calls, both, rng) for number in range(given.rounds)]
            for kind in ("new", "stored"):
                for which, stored in enumerate(both):
                    everything = [value for times in rounds for value in times[kind][which]]
                    print(f"{kind} key among {stored.keys}: {shown(everything)}")
                for name, figure in (("fastest tenths", tenth), ("medians", statistics.median)):
                    ratios = sorted(figure(times[kind][1]) / figure(times[kind][0]) for times in rounds)
                    print(
                        f"{kind}: ratio of the {name} {statistics.median(ratios):.3f} "
                        f"({ratios[0]:.3f} to {ratios[-1]:.3f} over {len(ratios)} rounds)"
                    )
            for stored in both:
                print(f"pages that a check-lock touches among {stored.keys}: {stored.pages()}")
                stored.database.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
