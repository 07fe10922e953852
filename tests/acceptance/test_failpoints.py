"""Every process is killed between any two steps of a run's way, once at each: nothing is lost, and nothing done twice.

What is between the steps of a tool call is in test_killed_calls. ONCEONLY_TEST_FAILPOINTS=all adds the points at which
the process has no less and no more behind it than at another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from support.clients import unique
from support.process_nodes import Process, RedisServer
from support.sdk_parts import answers
from support.sdk_tenants import Tenant, make_tenant
from support.worker_fixtures import new_database
from support.worker_system import System, system_over

from onceonly_jobs.contracts.schedules import ScheduleRequest
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.services import account, audit, claims, schedules

pytestmark = pytest.mark.timeout(240)

FAILING = ("-m", "support.failing")
APP = ("--app", "support.worker_app")


def chosen(*points: str, further: tuple[str, ...]) -> tuple[str, ...]:
    """Those `further` ones are inside a transaction that another point already ends, or before it."""
    return (*points, *further) if os.environ.get("ONCEONLY_TEST_FAILPOINTS") == "all" else points


@dataclass
class Parts:
    """One process of each kind, each of which dies where a test says so."""

    system: System
    tenant: Tenant
    processes: dict[str, Process]
    base_url: str

    def arm(self, point: str) -> None:
        (self.system.directory / point).touch()

    def fired(self, point: str) -> None:
        """Wait until the process has died there, and start it again if that was the end of it."""
        armed = self.system.directory / point
        self.system.until(lambda: not armed.exists(), f"dead: {point}")
        part = point.split()[0]
        if part != "worker":  # there a child died, which the pool replaces
            self.restarted(part)

    def restarted(self, part: str) -> None:
        process = self.processes[part]
        process.wait()
        process.start()
        self.ready(part)

    def ready(self, part: str) -> None:
        if part == "api":
            origin = self.base_url.removesuffix("/v1")
            self.system.until(lambda: answers(f"{origin}/ready"), "the API serves")
        else:
            self.processes[part].ready()

    def ask(self, key: str) -> httpx.Response:
        metadata = {"task": "effect", "payload": {"witness": str(self.system.witness(key))}}
        return httpx.post(
            f"{self.base_url}/ai/run",
            json={"key": key, "metadata": metadata},
            headers={"Authorization": f"Bearer {self.tenant.api_key}"},
            timeout=30,
        )

    def enqueue(self, key: str, job: str = "effect", **options: Any) -> None:
        payload = {"witness": str(self.system.witness(key)), **options.pop("payload", {})}
        self.system.jobs.enqueue(job, key=key, payload=payload, **options)

    def check(self, key: str, *, attempts: int, starts: int) -> None:
        """The run is completed and was started so often; counters and audit trail tell of it once."""
        row = self.system.finished(key)
        assert (row["state"], row["attempt"]) == ("completed", attempts), row["errors"]
        assert self.system.starts(key) == starts
        query = """SELECT d.decision, o.outcome FROM audit_decisions d
            LEFT JOIN audit_outcomes o ON o.decision_id = d.id WHERE d.run_key = :key"""
        assert self.system.rows(query, key=key) == [{"decision": "executed", "outcome": "completed"}]
        finishes = [event for event in self.system.events(key) if event == "run_finished"]
        assert len(finishes) == 1

    def check_counters(self) -> None:
        """Every taking is charged once, and only takings are."""
        query = """SELECT (SELECT coalesce(sum(charged_total), 0) FROM usage_counters) AS charged,
            (SELECT count(*) FROM runs) AS runs"""
        [row] = self.system.rows(query)
        assert row["charged"] == row["runs"]


@pytest.fixture(scope="module")
def ours(servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    directory = tmp_path_factory.mktemp("failpoints")
    env = {
        "ONCEONLY_TEST_POINTS": str(directory),
        "ONCEONLY_AUDIT_SEAL_S": "0.2",
        "ONCEONLY_WORKER_LEASE_S": "2",
        "ONCEONLY_DRAIN_S": "0.2",
        # The points are those of runs with messages; test_direct_claims.py kills those who take runs without.
        "ONCEONLY_DIRECT_CLAIMS": "false",
    }
    with ExitStack() as stack:
        broker = RedisServer(directory / "redis")
        stack.callback(broker.teardown)
        database_url = stack.enter_context(new_database(servers, template))
        url = broker.celeryconfig["url"]
        system = stack.enter_context(system_over(database_url, url, directory, **env))
        port = free_port()
        processes = {
            "api": system.started_as("api", *FAILING, "api", "--port", str(port)),
            "beat": system.started_as("beat", *FAILING, "beat", *APP),
            "worker": system.started_as("worker", *FAILING, "worker", *APP, "--concurrency", "2"),
        }
        for process in processes.values():
            stack.callback(process.teardown)
            process.start()
        system.db.run(account.ensure_tenant, "t", Plan.AGENCY)
        ours = Parts(system, make_tenant(system.db), processes, f"http://127.0.0.1:{port}/v1")
        for part in processes:
            ours.ready(part)
        yield ours


@pytest.fixture
def key(ours: Parts) -> Iterator[str]:
    yield unique("k")
    ours.check_counters()


WORKER = {
    "worker before claims.claim": (1, 1),
    "worker after claims.claim": (2, 1),
    "worker committed claims.claim": (2, 1),
    "worker before the handler": (2, 1),
    "worker after the handler": (2, 2),
    "worker before claims.complete": (2, 2),
    "worker after claims.complete": (1, 1),
    "worker committed claims.complete": (1, 1),
}
"""Pop/claim, claim/handler, handler/complete, complete/hint: with how many attempts and starts of the handler each."""


@pytest.mark.parametrize("point", WORKER)
def test_a_worker_killed_on_the_way_of_a_run_leaves_it_to_be_done_once(
    ours: Parts, key: str, point: str
) -> None:
    attempts, starts = WORKER[point]
    ours.arm(point)
    ours.enqueue(key)
    ours.fired(point)
    ours.check(key, attempts=attempts, starts=starts)


@pytest.mark.parametrize("point", ["worker before claims.retry", "worker after claims.retry"])
def test_a_worker_killed_at_a_retry_leaves_the_run_its_next_attempt(
    ours: Parts, key: str, point: str
) -> None:
    ours.arm(point)
    ours.enqueue(key, "flaky", payload={"failures": 1})
    ours.fired(point)
    ours.check(key, attempts=2, starts=2)


@pytest.mark.parametrize("point", ["worker before claims.hand_back", "worker after claims.hand_back"])
def test_a_worker_killed_at_handing_back_leaves_the_run_to_another(ours: Parts, key: str, point: str) -> None:
    ours.enqueue(key, "slow_first")
    ours.system.until(lambda: ours.system.starts(key) == 1, "the first start")
    ours.arm(point)
    ours.processes["worker"].signal_main("SIGTERM")
    ours.fired(point)
    ours.restarted("worker")
    ours.check(key, attempts=2, starts=2)


API = chosen(
    "api before runs.take",
    "api committed runs.take",
    "api before publishing",
    further=("api after runs.take",),
)


@pytest.mark.parametrize("point", API)
def test_an_api_process_killed_around_its_commit_has_taken_the_key_once(
    ours: Parts, key: str, point: str
) -> None:
    """Its client asks again, as clients do."""
    ours.arm(point)
    try:
        ours.ask(key)
    except httpx.TransportError:
        answered = False
    else:
        answered = True
    ours.fired(point)
    assert not answered or point.endswith("publishing")
    ours.ask(key).raise_for_status()
    ours.check(key, attempts=1, starts=1)


@pytest.mark.parametrize("point", ["beat before publishing", "beat after publishing"])
def test_a_relay_killed_around_a_publication_has_it_made(ours: Parts, key: str, point: str) -> None:
    """The run is marked as published before it is: the mark ends."""
    ours.arm(point)
    ours.enqueue(key, delay=0.3)
    ours.fired(point)
    ours.check(key, attempts=1, starts=1)


REAPER = chosen("beat found outbox.reap", further=("beat before outbox.reap",))


@pytest.mark.parametrize("point", REAPER)
def test_a_relay_killed_around_reaping_leaves_the_run_queued(ours: Parts, key: str, point: str) -> None:
    ours.enqueue(key, delay=3600)
    claim = claimed_by_nobody(ours, key)
    ours.arm(point)
    ours.fired(point)
    ours.check(key, attempts=2, starts=1)
    assert claim.fencing_token < ours.system.row(key)["fencing_token"]


def claimed_by_nobody(ours: Parts, key: str) -> Claim:
    """A claim that nobody keeps."""
    with ours.system.db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET due_at = onceonly_now() WHERE key = %s", (key,))
    claim = ours.system.db.run(claims.claim, ours.system.row(key)["id"], "effect", 1.0, None)
    assert claim is not None
    return claim


TICKER = chosen(
    "beat after ticks.record",
    "beat committed schedules.advance",
    further=("beat before ticks.record", "beat after schedules.advance"),
)


@pytest.mark.parametrize("point", TICKER)
def test_a_scheduler_killed_between_tick_and_run_has_one_run_for_each_tick(
    ours: Parts, key: str, point: str
) -> None:
    request = ScheduleRequest(name=key, every_s=1, task="effect", misfire="catch_up", catch_up_limit=1000)
    ours.arm(point)
    ours.system.db.run(schedules.create, "k", "t", request, ours.system.settings)
    ours.fired(point)
    ours.system.until(lambda: len(ticks(ours, key)) >= 3, "three ticks")
    served = ticks(ours, key)
    ours.system.db.run(schedules.delete, "k", "t", key)
    times = [row["tick_at"] for row in served]
    assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))], "none missing, none twice"
    assert {(row["state"], row["decisions"]) for row in served} == {("fired", 1)}
    for row in served:
        assert ours.system.finished(row["key"])["attempt"] == 1


def ticks(ours: Parts, name: str) -> list[dict[str, Any]]:
    query = """SELECT tick_at, key, state,
            (SELECT count(*) FROM audit_decisions d WHERE d.run_key = t.key) AS decisions
        FROM schedule_ticks t WHERE t.name = :name ORDER BY tick_at"""
    return ours.system.rows(query, name=name)


SEALER = chosen(
    "beat after audit.add_seal",
    "beat committed audit.add_sealed",
    further=("beat before audit.add_seal", "beat after audit.add_sealed"),
)


@pytest.mark.parametrize("point", SEALER)
def test_a_sealer_killed_at_any_step_leaves_a_trail_that_verifies(ours: Parts, key: str, point: str) -> None:
    ours.arm(point)
    ours.enqueue(key)
    ours.fired(point)
    ours.check(key, attempts=1, starts=1)
    ours.system.until(lambda: audit.verify(ours.system.db, None).unsealed == 0, "all is sealed")
