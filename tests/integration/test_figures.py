"""What the API counts, who may see it, and the figures that a scheduler reads from the database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.claims import make_claim

from onceonly_jobs import tracing
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.schedules import ScheduleRequest
from onceonly_jobs.dispatch.figures import DatabaseFigures
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.services import claims, runs, schedules
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.claims import Failure
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.testing import Clock

TOKEN = {"Authorization": "Bearer let-prometheus-in"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_route_and_never_by_path(api: Any) -> None:
    before = samples(api.app.request("GET", "/metrics").text)
    for path in ("/v1/policies/some-agent-7", "/v1/no/such/route-7", "/v1/tools/tool-7"):
        api.app.request("GET", path, headers={"Authorization": f"Bearer {api.api_key}"})
    api.app.request("BREW", "/v1/me")
    answer = api.app.request("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    after = samples(answer.text)
    for route, method, status in (
        ("/v1/policies/{agent_id}", "GET", "404"),
        ("none", "GET", "404"),
        ("/v1/tools/{name}", "GET", "404"),
        ("/v1/me", "OTHER", "405"),
    ):
        labels = {"route": route, "method": method, "status": status}
        name = "onceonly_http_requests_total"
        assert one(after, name, **labels) == one(before, name, **labels) + 1, route
    assert "-7" not in answer.text
    assert api.tenant_id not in answer.text


def test_duplicates_of_check_lock_are_counted(serve: Callable[..., Any]) -> None:
    """Also where they are answered with 409."""
    api = serve(duplicate_status_code=409)
    count = "onceonly_check_locks_total"
    before = samples(api.app.request("GET", "/metrics").text)
    for _ in range(3):
        api.post("/check-lock", key="k")
    after = samples(api.app.request("GET", "/metrics").text)
    assert one(after, count, status="locked") == one(before, count, status="locked") + 1
    assert one(after, count, status="duplicate") == one(before, count, status="duplicate") + 2


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_without_a_token_nobody_sees_metrics_through_a_proxy(api: Any, header: str) -> None:
    assert api.app.request("GET", "/metrics").status_code == 200
    answer = api.app.request("GET", "/metrics", headers={header: "127.0.0.1"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_without_a_token_no_other_machine_sees_metrics(shared_app: Any) -> None:
    transport = httpx.ASGITransport(shared_app.asgi, client=("192.0.2.7", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as elsewhere:
        assert (await elsewhere.get("/metrics")).status_code == 404


def test_with_a_token_only_who_has_it_sees_metrics(serve: Callable[..., Any]) -> None:
    app = serve(metrics_token="let-prometheus-in").app
    assert app.request("GET", "/metrics").status_code == 401
    assert app.request("GET", "/metrics", headers={"Authorization": "Bearer other"}).status_code == 401
    forwarded = {**TOKEN, "X-Forwarded-For": "192.0.2.7"}
    assert app.request("GET", "/metrics", headers=forwarded).status_code == 200


@pytest.mark.parametrize(("wanted", "level"), [(False, logging.DEBUG), (True, logging.INFO)])
def test_the_line_per_request_is_at_info_where_asked(
    serve: Callable[..., Any], caplog: pytest.LogCaptureFixture, wanted: bool, level: int
) -> None:
    caplog.set_level(logging.DEBUG, "onceonly_jobs.api.observed")
    api = serve(access_log=wanted)
    api.get("/ai/status", key="never-seen")
    api.app.request("GET", "/health")
    lines = [
        (line.levelno, line.message) for line in caplog.records if line.name == "onceonly_jobs.api.observed"
    ]
    (of_route, text), (of_health, _) = lines
    assert (of_route, of_health) == (level, logging.DEBUG)
    assert text.startswith("GET /v1/ai/status: 404 in ")


def test_a_run_without_a_trace_has_none(api: Any) -> None:
    """A traceparent is taken up only where traces are on."""
    header = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    api.request("POST", "/ai/run", json={"key": "untraced"}, headers=header)
    assert api.claim("untraced").traceparent is None
    assert tracing.traceparent() is None


def taken(db: Database, caller: Caller, key: str, **options: Any) -> int:
    job = JobSpec(name="echo", queue="q", max_attempts=1)
    taking = runs.job_taking(caller, job, key=key, ttl_s=60, metadata=None, **options)
    return db.run(runs.taking_operation(caller, taking), caller, taking).run.id


def claimed(db: Database, run: int) -> Claim:
    claim = db.run(claims.claim, run, "echo", 15, None)
    assert claim is not None
    return claim


def read(figures: DatabaseFigures) -> Samples:
    registry = CollectorRegistry()
    registry.register(figures)
    return samples(generate_latest(registry).decode())


def test_figures_are_what_the_database_holds(db: Database, caller: Caller, clock: Clock) -> None:
    figures = DatabaseFigures(db, pause_s=0, share=0)
    figures.collect()
    for key in ("done", "dead", "running", "waiting", "waiting-too"):
        taken(db, caller, key)
    taken(db, caller, "later", delay_s=3600)
    clock.advance(30)
    ids = {key: db.run(runs.find, caller.tenant_id, key).id for key in ("done", "dead", "running")}
    db.run(claims.complete, claimed(db, ids["done"]), {}, 60)
    dead = Failure(error_code="x", dead_lettered=True)
    db.run(claims.end_as_failed, claimed(db, ids["dead"]), dead, 60)
    claimed(db, ids["running"])
    found = read(figures)
    assert one(found, "onceonly_queue_due_runs", queue="q") == 2
    assert one(found, "onceonly_queue_delayed_runs", queue="q") == 1
    assert 30 <= one(found, "onceonly_queue_oldest_due_seconds", queue="q") < 60
    assert 30 <= one(found, "onceonly_relay_lag_seconds") < 60
    assert one(found, "onceonly_runs_in_progress", job_name="echo") == 1
    assert one(found, "onceonly_runs_ended_total", job_name="echo", outcome="completed") == 1
    assert one(found, "onceonly_runs_ended_total", job_name="echo", outcome="failed") == 1
    assert one(found, "onceonly_dead_letters_total", job_name="echo") == 1
    assert one(found, "onceonly_dead_letters_waiting") == 1
    assert one(found, "onceonly_decisions_total", decision="executed", reason="ok") == 6


def test_the_first_tick_in_line_is_the_one_that_is_overdue(
    db: Database, caller: Caller, settings: Settings, clock: Clock
) -> None:
    overdue = "onceonly_schedule_overdue_seconds"
    figures = DatabaseFigures(db, pause_s=0, share=0)
    db.run(claims.announce, [JobSpec(name="echo", queue="q")])
    for name, every_s in (("first", 60), ("paused", 30), ("second", 90)):
        request = ScheduleRequest(name=name, task="echo", every_s=every_s, paused=name == "paused")
        db.run(schedules.create, "k", caller.tenant_id, request, settings)
    assert one(read(figures), overdue) == 0
    clock.advance(100)
    assert 39 <= one(read(figures), overdue) < 60


def test_each_event_is_counted_once_however_often_it_is_read(db: Database, caller: Caller) -> None:
    figures = DatabaseFigures(db, pause_s=0, share=0)
    figures.collect()
    for number in range(3):
        run = taken(db, caller, f"k{number}")
        db.run(claims.complete, claimed(db, run), {}, 60)
        found = [read(figures) for _ in range(2)][-1]
        assert one(found, "onceonly_runs_ended_total", job_name="echo", outcome="completed") == number + 1


def test_a_transaction_that_is_still_open_is_counted_when_it_commits(db: Database, caller: Caller) -> None:
    """Its number is older than those that committed before it, and were counted already."""
    figures = DatabaseFigures(db, pause_s=0, share=0)
    figures.collect()
    job = JobSpec(name="echo", queue="q")
    # In a counter row of its own: nobody waits for it.
    taking = replace(runs.job_taking(caller, job, key="slow", ttl_s=60, metadata=None), slot=-1)
    with db.engine.connect() as connection, connection.begin():
        on(connection, runs.take(caller, taking))
        taken(db, caller, "fast")
        read(figures)
    assert one(read(figures), "onceonly_decisions_total", decision="executed", reason="ok") == 2


def test_while_the_database_is_away_its_gauges_are_missing(db: Database, caller: Caller) -> None:
    """An old figure would look like a good one; what was counted stays."""
    figures = DatabaseFigures(db, pause_s=0, share=0)
    figures.collect()
    taken(db, caller, "k")
    assert one(read(figures), "onceonly_decisions_total", decision="executed", reason="ok") == 1
    figures._database = Database("postgresql+psycopg://127.0.0.1:1/none")
    found = read(figures)
    assert {name for name, _ in found} == {"onceonly_decisions_total"}


def test_a_slow_reading_is_not_repeated_soon(db: Database) -> None:
    readings = []

    class Slow(Database):
        def run(self, *args: Any, **options: Any) -> Any:
            readings.append(args)
            return db.run(*args, **options)

    figures = DatabaseFigures(Slow("postgresql+psycopg://127.0.0.1:1/none"), pause_s=60)
    for _ in range(3):
        figures.collect()
    assert len(readings) == 1


def test_a_claim_knows_since_when_it_was_due(db: Database, caller: Caller, clock: Clock) -> None:
    run = taken(db, caller, "k", delay_s=10)
    clock.advance(25)
    claim = claimed(db, run)
    assert claim.due_at is not None
    assert 15 <= (claim.claimed_at - claim.due_at).total_seconds() < 20
    assert make_claim().due_at is None
