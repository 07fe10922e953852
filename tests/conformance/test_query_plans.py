"""The hot statements find their rows by index, however many rows lie beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.domain.states import Owner
from onceonly_jobs.store import (
    account,
    actions,
    claims,
    claims_many,
    dead,
    events,
    figures,
    leases,
    listing,
    locks,
    outbox,
    retention,
    runs,
    schedules,
    ticks,
    unknown,
    usage,
    webhooks,
)
from onceonly_jobs.store.dead import Wanted
from onceonly_jobs.store.listing import Filter
from onceonly_jobs.store.outbox import Death
from onceonly_jobs.store.retention import Kept
from onceonly_jobs.store.runs import Taking
from onceonly_jobs.store.statement import Statement
from onceonly_jobs.store.unknown import Settlement
from tests.conftest import Servers

ROWS = 50_000
LESS = 10_000
"""In the tables of which a run needs no row of its own."""
OLD = 150
"""Of each kind that grows old, the last so many are: fewer than a batch, as in a system that is looked after."""
TABLES = (
    "runs",
    "locks",
    "run_events",
    "timelines",
    "feed_events",
    "api_keys",
    "audit_decisions",
    "usage_counters",
    "schedules",
    "schedule_ticks",
    "run_actions",
    "notifications",
    "workers",
)

FILL = f"""
INSERT INTO locks (tenant_id, key, ttl_s, first_seen_at, locked_until_at)
SELECT 't' || mod(n, 5), 'k' || n, 60, now(), now() + ({ROWS - OLD} - n) * interval '1 minute'
FROM generate_series(1, {ROWS}) n;
INSERT INTO runs (tenant_id, key, owner, state, run_id, lease_id, lease_ttl_s, job, queue, first_seen_at,
                  lease_until_at, publish_at, due_at, done_at, retain_until_at)
SELECT 't' || mod(n, 5), 'k' || n, 'server', state, 'k' || n, 'l' || n, 60, 'echo', 'q', now(),
       now() + interval '1 hour', now() + interval '1 hour', now(), now(),
       now() + ({ROWS - OLD} - n) * interval '1 hour'
FROM generate_series(1, {ROWS}) n
CROSS JOIN LATERAL (SELECT (ARRAY['completed', 'queued', 'in_progress', 'failed'])[1 + mod(n, 4)]) s (state);
INSERT INTO run_events (tenant_id, run_id, type)
SELECT 't' || mod(n, 5), 'k' || mod(n, 2000), 'x' FROM generate_series(1, {ROWS}) n;
INSERT INTO timelines (tenant_id, run_id, last_at, last_type)
SELECT 't' || mod(n, 5), 'k' || n, now() + ({ROWS - OLD} - n) * interval '1 hour' - interval '30 days', 'x'
FROM generate_series(1, {ROWS}) n;
INSERT INTO feed_events (tenant_id, type, at)
SELECT 't' || mod(n, 5), 'x', now() + ({ROWS - OLD} - n) * interval '1 hour' - interval '30 days'
FROM generate_series(1, {ROWS}) n;
INSERT INTO tenants (id, plan) VALUES ('t0', 'agency');
INSERT INTO api_keys (id, tenant_id, key_sha256, preview)
SELECT 'k' || n, 't0', decode(md5(n::text), 'hex'), 'x' FROM generate_series(1, {LESS}) n;
INSERT INTO audit_decisions (tenant_id, tool, run_key, allowed, decision, policy_reason, policy_code, risk_level)
SELECT 't' || mod(n, 5), 'x', 'k' || n, true, 'executed', 'x', 'x', 'low' FROM generate_series(1, {LESS}) n;
INSERT INTO webhooks (tenant_id, url, secret_id, secret_mask, secret_sealed)
SELECT 't' || n, 'x', 'x', 'x', 'x' FROM generate_series(0, 4) n;
INSERT INTO notifications (tenant_id, type, data, state, at)
SELECT 't' || mod(n, 5), 'x', '{{}}', (ARRAY['delivered', 'pending', 'dead'])[1 + mod(n, 3)],
       now() - n * interval '1 hour'
FROM generate_series(1, {LESS}) n;
INSERT INTO usage_counters (tenant_id, kind, day, slot)
SELECT 't' || mod(n, 50), 'ai', date '2020-01-01' + n / 50, 0 FROM generate_series(1, {LESS}) n;
INSERT INTO schedules (tenant_id, name, every_s, tz, anchor_at, misfire, misfire_grace_s, catch_up_limit, jitter_s,
                       overlap, next_tick_at, origin, created_by, updated_by)
SELECT 't' || mod(n, 5), 's' || n, 60, 'UTC', now(), 'once', 5, 100, 0, 'allow', now() + n * interval '1 second', 'api',
       'k', 'k' FROM generate_series(1, {LESS}) n;
INSERT INTO schedule_ticks (tenant_id, name, tick_at, key, state, source)
SELECT 't' || mod(n, 5), 's' || mod(n, 2000), now() + n * interval '1 second', 'k' || n, 'fired', 'scheduler'
FROM generate_series(1, {LESS}) n;
INSERT INTO run_actions (tenant_id, run_decision_id, position, decision_id, code, call_key)
SELECT 't' || mod(n, 5), n / 10, mod(n, 10), n, 'ok', 'k' || n FROM generate_series(1, {LESS}) n;
INSERT INTO workers (id, name, hostname, pid, queues, concurrency, state, seen_at)
SELECT 'w' || n, 'w', 'h', n, '{{q}}', 1, 'serving', now() + ({LESS - OLD} - n) * interval '1 minute' - interval '1 day'
FROM generate_series(1, {LESS}) n;
UPDATE runs SET dead_lettered = true WHERE state = 'failed' AND mod(id, 100) = 3;
"""

CLAIM = Claim(
    id=7,
    tenant_id="t2",
    key="k7",
    run_id="k7",
    job="echo",
    agent_id=None,
    lease_id="wl",
    decision_id=1,
    fencing_token=1,
    attempt=1,
    max_attempts=3,
    metadata={},
    deadline_at=datetime(2026, 1, 1, tzinfo=UTC),
    claimed_at=datetime(2026, 1, 1, tzinfo=UTC),
    first_seen_at=datetime(2026, 1, 1, tzinfo=UTC),
)
TAKING = Taking(
    tenant_id="t2", key="k7", owner=Owner.SERVER, lease_id="l", ttl_s=60, run_id="k7", job="echo", queue="q"
)

FIGURES: list[Statement[Any]] = [
    figures.waiting(),
    figures.running(),
    figures.moment(),
    figures.decided(2**40, 2**40 + 1000),
    figures.ended(2**40, 2**40 + 1000),
]
"""They read whole what waits and what runs, which in a table of old runs are few."""

HOT: list[Statement[Any]] = [
    account.caller(b"x"),
    locks.check([locks.Check(tenant_id="t2", key="k7", ttl_s=60)]),
    runs.take([TAKING]),
    runs.find("t2", "k7"),
    leases.extend("t2", "k7", "l", 60),
    leases.extend_governed("t2", "k7", "l", 60, 60),
    leases.complete("t2", "k7", "l", {}, None, 60),
    leases.cancel("t2", "k7", "l", None, 60),
    claims.claim(7, "echo", "wl", 15, None, 60),
    claims.heartbeat(CLAIM, 15, 60),
    claims.heartbeat(replace(CLAIM, agent_id="a"), 15, 60),
    claims.is_current("t", "k", 1),
    claims.complete(CLAIM, {}, "h", 60),
    claims.retry(CLAIM, 1, "x", "x"),
    claims.hold_claim(CLAIM),
    claims_many.claim_due(64, "q", ["echo"], "wl", 15, claims.NOBODY),
    claims_many.claimed("wl"),
    claims_many.keep([CLAIM], 15),
    claims_many.complete([claims_many.Completion(CLAIM, {}, "h")], 60),
    claims_many.give_back([CLAIM]),
    claims_many.spare("w", 7, 7, claims_many.Progress(1, True)),
    actions.decided(CLAIM),
    actions.find(CLAIM, 3),
    actions.finish(CLAIM, 3, "x", Code.OK, status="ok", message=None, result={}),
    outbox.reap(100, 60),
    outbox.died(Death(worker_id="w", pid=7, why="x"), 7, 60, others=True),
    claims.hand_back(CLAIM, "x"),
    outbox.take_due(100, 2, []),
    unknown.take_confirmable(100, "x"),
    unknown.calls("t2", 50, 0),
    unknown.settle("t2", Settlement(key="k7", happened=True, actor="x"), 60),
    unknown.verdict("t2", "k7"),
    dead.letters(Wanted(tenant_id="t2"), 50, 0),
    dead.letters(Wanted(tenant_id=None, job="x"), 50, 0),
    dead.total(Wanted(tenant_id="t2")),
    dead.by_key("t2", "k7"),
    dead.replay("t2", "k7", "x", None, 0),
    dead.replay_batch(Wanted(tenant_id=None), CLAIM.claimed_at, 100, "x"),
    dead.discard("t2", "k7", "x", None, None),
    dead.discard_batch(Wanted(tenant_id="t2"), CLAIM.claimed_at, 100, "x", None),
    dead.replayed("t2", "k7"),
    dead.discarded("t2", "k7"),
    events.timeline("t2", "k7", 200, 0),
    events.timeline_length("t2", "k7"),
    events.latest("t2", "", 50, 0),
    events.feed("t2", 50, 0),
    events.after("t2", "k7", 5, 500),
    events.milestones("t2", "k7", 5),
    events.feed_after("t2", ROWS, [], 500),
    events.feed_end("t2"),
    claims.fail(CLAIM, claims.Failure(error_code="x"), 60),
    webhooks.take(32, 4, 60),
    webhooks.notifications("t2", None, 50, 0),
    listing.by_key("t2", "k7"),
    listing.runs(Filter(tenant_id="t2", state="failed", job="x"), 50, 0),
    listing.total(Filter(tenant_id="t2", state="failed", job="x")),
    listing.runs(Filter(tenant_id=None, state="in_progress"), 50, 0),
    usage.month("t2"),
    usage.lock_cap("t2", Kind.AI),
    schedules.due(100, []),
    schedules.next_due_in_s([]),
    schedules.next_due_in_s([schedules.Name("t2", "s7")]),
    schedules.take_due(schedules.Name("t2", "s7")),
    schedules.list_all("t2", 50, 0),
    ticks.latest("t2", "s7", 50, 0),
    ticks.active_run("t2", "s7", "k"),
    ticks.cancel_active("t2", "s7", "k", "x", 60),
    ticks.forget_old(60, 1000),
    webhooks.forget(1000),
    dead.letters(dead.Wanted(tenant_id="t2"), 50, 0),
    dead.by_key("t2", "k7"),
    dead.replayed("t2", "k7"),
    *(retention.delete(kind, Kept(actions_s=60, events_s=30 * 86_400), 1000) for kind in retention.Kind),
]

SEVERAL = {
    # A batch, and what finding it may cost beside it.
    "outbox.reap": 300,
    "outbox.take_due": 300,
    # All claims that are held: as many as all workers can have at once.
    "outbox.died": ROWS // 4 + 10,
    "claims_many.spare": ROWS // 4 + 10,
    "claims_many.claimed": ROWS // 4 + 10,
    "unknown.take_confirmable": 300,
    "webhooks.take": 400,
    "schedules.due": 300,
    # A page of what is one of five namespaces', by whichever index; and what is counted up to a limit.
    "events.feed": 400,
    "webhooks.notifications": 400,
    "listing.runs": 400,
    "listing.total": listing.MOST_COUNTED,
    # A batch of what is old, found and then deleted.
    "webhooks.forget": 3_000,
    "retention.delete_runs": 2 * OLD + 10,
    "retention.delete_locks": 2 * OLD + 10,
    "retention.delete_feed_events": 2 * OLD + 10,
    "retention.delete_workers": 2 * OLD + 10,
    # Each timeline's events too: there are 25 of each.
    "retention.delete_run_events": 60 * OLD,
}
"""How many rows of the tables a statement may look at that has to do with more than one run."""
FEW = 100


@pytest.fixture(scope="module")
def backlog(servers: Servers, template: str) -> Iterator[sa.Engine]:
    """A database with a backlog, that every test looks at and none changes."""
    admin = sa.create_engine(servers.postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"onceonly_plans_{os.getpid()}"
    engine = sa.create_engine(servers.database(name), poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        with engine.begin() as filling:
            filling.exec_driver_sql(FILL)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as tidying:
            tidying.exec_driver_sql("VACUUM ANALYZE")
        yield engine
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def filled(backlog: sa.Engine) -> Iterator[sa.Connection]:
    with backlog.connect() as connection:
        yield connection
        connection.rollback()


def sequential_scans(connection: sa.Connection, statement: Statement[Any]) -> list[str]:
    query = sa.text("EXPLAIN (FORMAT JSON) " + str(statement.query))
    [plan] = connection.execute(query, statement.params).scalar_one()
    return [table for table in _scanned(plan["Plan"]) if table in TABLES]


def _scanned(node: dict[str, Any]) -> Iterator[str]:
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for child in node.get("Plans", []):
        yield from _scanned(child)


def rows_touched(connection: sa.Connection, statement: Statement[Any]) -> int:
    """How many rows the statement reads of the tables and their indexes, those that it then leaves aside included."""
    query = sa.text("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + str(statement.query))
    with connection.begin_nested() as trial:
        [plan] = connection.execute(query, statement.params).scalar_one()
        trial.rollback()
    return sum(_read(plan["Plan"]))


def _read(node: dict[str, Any]) -> Iterator[int]:
    if node.get("Relation Name") in TABLES and "Scan" in node["Node Type"]:
        removed = (node.get(name, 0) for name in ("Rows Removed by Filter", "Rows Removed by Index Recheck"))
        yield (node["Actual Rows"] + sum(removed)) * node["Actual Loops"]
    for child in node.get("Plans", []):
        yield from _read(child)


def test_hot_statements_read_few_rows_of_a_large_backlog(filled: sa.Connection) -> None:
    read = {statement.name: rows_touched(filled, statement) for statement in HOT}
    assert {name: rows for name, rows in read.items() if rows > SEVERAL.get(name, FEW)} == {}


def test_hot_statements_never_scan_a_table(filled: sa.Connection) -> None:
    found = {statement.name: sequential_scans(filled, statement) for statement in HOT}
    assert {name: tables for name, tables in found.items() if tables} == {}
    filled.exec_driver_sql("UPDATE runs SET state = 'completed' WHERE mod(id, 20) <> 0; ANALYZE runs")
    found = {statement.name: sequential_scans(filled, statement) for statement in FIGURES}
    assert {name: tables for name, tables in found.items() if tables} == {}


def test_a_claim_of_several_looks_at_no_more_than_its_window(filled: sa.Connection) -> None:
    """Whatever is due in other queues, and whatever of its own."""
    filled.exec_driver_sql("UPDATE runs SET publish_at = now() - interval '1 s'; ANALYZE runs")
    for queue, jobs in (("q", ["echo"]), ("other", ["echo"]), ("q", ["other"])):
        statement = claims_many.claim_due(64, queue, jobs, "wl", 15, claims.NOBODY)
        assert sequential_scans(filled, statement) == []
        assert rows_touched(filled, statement) <= 2 * claims_many.WINDOW + 200


def test_a_missing_index_would_be_noticed(filled: sa.Connection) -> None:
    filled.exec_driver_sql("DROP INDEX ix_runs_due")
    assert sequential_scans(filled, outbox.take_due(100, 2, [])) == ["runs"]
