"""The hot statements find their rows by index, however many rows lie beside them."""

from __future__ import annotations

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
    events,
    figures,
    leases,
    listing,
    locks,
    outbox,
    runs,
    schedules,
    ticks,
    unknown,
    usage,
    webhooks,
)
from onceonly_jobs.store.listing import Filter
from onceonly_jobs.store.runs import Taking
from onceonly_jobs.store.statement import Statement
from onceonly_jobs.store.unknown import Settlement

ROWS = 20_000
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
)

FILL = f"""
INSERT INTO locks (tenant_id, key, ttl_s, first_seen_at, locked_until_at)
SELECT 't' || mod(n, 5), 'k' || n, 60, now(), now() + interval '1 day' FROM generate_series(1, {ROWS}) n;
INSERT INTO runs (tenant_id, key, owner, state, run_id, lease_id, lease_ttl_s, job, queue, first_seen_at,
                  lease_until_at, publish_at, due_at, done_at, retain_until_at)
SELECT 't' || mod(n, 5), 'k' || n, 'server', state, 'k' || n, 'l' || n, 60, 'echo', 'q', now(),
       now() + interval '1 hour', now() + interval '1 hour', now(), now(), now() + interval '7 days'
FROM generate_series(1, {ROWS}) n
CROSS JOIN LATERAL (SELECT (ARRAY['completed', 'queued', 'in_progress', 'failed'])[1 + mod(n, 4)]) s (state);
INSERT INTO run_events (tenant_id, run_id, type)
SELECT 't' || mod(n, 5), 'k' || mod(n, 2000), 'x' FROM generate_series(1, {ROWS}) n;
INSERT INTO timelines (tenant_id, run_id, last_at, last_type)
SELECT 't' || mod(n, 5), 'k' || n, now(), 'x' FROM generate_series(1, {ROWS}) n;
INSERT INTO feed_events (tenant_id, type) SELECT 't' || mod(n, 5), 'x' FROM generate_series(1, {ROWS}) n;
INSERT INTO tenants (id, plan) VALUES ('t0', 'agency');
INSERT INTO api_keys (id, tenant_id, key_sha256, preview)
SELECT 'k' || n, 't0', decode(md5(n::text), 'hex'), 'x' FROM generate_series(1, {ROWS}) n;
INSERT INTO audit_decisions (tenant_id, tool, run_key, allowed, decision, policy_reason, policy_code, risk_level)
SELECT 't' || mod(n, 5), 'x', 'k' || n, true, 'executed', 'x', 'x', 'low' FROM generate_series(1, {ROWS}) n;
INSERT INTO webhooks (tenant_id, url, secret_id, secret_mask, secret_sealed)
SELECT 't' || n, 'x', 'x', 'x', 'x' FROM generate_series(0, 4) n;
INSERT INTO notifications (tenant_id, type, data, state, at)
SELECT 't' || mod(n, 5), 'x', '{{}}', (ARRAY['delivered', 'pending', 'dead'])[1 + mod(n, 3)],
       now() - n * interval '1 hour'
FROM generate_series(1, {ROWS}) n;
INSERT INTO usage_counters (tenant_id, kind, day, slot)
SELECT 't' || mod(n, 50), 'ai', date '2020-01-01' + n / 50, 0 FROM generate_series(1, {ROWS}) n;
INSERT INTO schedules (tenant_id, name, every_s, tz, anchor_at, misfire, misfire_grace_s, catch_up_limit, jitter_s,
                       overlap, next_tick_at, origin, created_by, updated_by)
SELECT 't' || mod(n, 5), 's' || n, 60, 'UTC', now(), 'once', 5, 100, 0, 'allow', now() + n * interval '1 second', 'api',
       'k', 'k' FROM generate_series(1, {ROWS}) n;
INSERT INTO schedule_ticks (tenant_id, name, tick_at, key, state, source)
SELECT 't' || mod(n, 5), 's' || mod(n, 2000), now() + n * interval '1 second', 'k' || n, 'fired', 'scheduler'
FROM generate_series(1, {ROWS}) n;
INSERT INTO run_actions (tenant_id, run_decision_id, position, decision_id, code, call_key)
SELECT 't' || mod(n, 5), n / 10, mod(n, 10), n, 'ok', 'k' || n FROM generate_series(1, {ROWS}) n;
ANALYZE;
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
    locks.check("t2", "k7", 60, None, None, None),
    runs.take(TAKING),
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
    actions.decided(CLAIM),
    actions.find(CLAIM, 3),
    actions.finish(CLAIM, 3, "x", Code.OK, status="ok", message=None, result={}),
    outbox.reap(100, 60),
    outbox.take_due(100, 2, []),
    unknown.take_confirmable(100, "x"),
    unknown.calls("t2", 50, 0),
    unknown.settle("t2", Settlement(key="k7", happened=True, actor="x"), 60),
    unknown.verdict("t2", "k7"),
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
]


@pytest.fixture
def filled(owner_url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(FILL)
        connection.commit()
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


def test_hot_statements_never_scan_a_table(filled: sa.Connection) -> None:
    found = {statement.name: sequential_scans(filled, statement) for statement in HOT}
    assert {name: tables for name, tables in found.items() if tables} == {}
    filled.exec_driver_sql("UPDATE runs SET state = 'completed' WHERE mod(id, 20) <> 0; ANALYZE runs")
    found = {statement.name: sequential_scans(filled, statement) for statement in FIGURES}
    assert {name: tables for name, tables in found.items() if tables} == {}


def test_a_missing_index_would_be_noticed(filled: sa.Connection) -> None:
    filled.exec_driver_sql("DROP INDEX ix_runs_due")
    assert sequential_scans(filled, outbox.take_due(100, 2, [])) == ["runs"]
