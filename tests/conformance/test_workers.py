"""What workers say of themselves, and what waits for them, read by the database's clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from onceonly_jobs.cli import checks
from onceonly_jobs.cli.main import build
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import OnceOnlyError
from onceonly_jobs.services import claims, figures, outbox, runs, workers
from onceonly_jobs.services.workers import ListedWorker, Unserved, WorkerReport, WorkerState
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock

GRACE_S = 2.0


def report(db: Database, **changed: Any) -> None:
    fields: dict[str, Any] = {
        "id": "w1",
        "name": "worker-1@host",
        "hostname": "host",
        "pid": 7,
        "queues": ["onceonly"],
        "concurrency": 2,
        "state": WorkerState.SERVING,
        "active": 0,
        "message_age_s": None,
        "last_claim_at": None,
    }
    db.run(workers.report, WorkerReport(**{**fields, **changed}))


def listed(db: Database) -> dict[str, ListedWorker]:
    return {worker.id: worker for worker in db.run(workers.listed)}


def test_a_worker_is_listed_as_it_last_was(db: Database, clock: Clock) -> None:
    report(db)
    before = listed(db)["w1"]
    clock.advance(5)
    claimed_at = datetime(2026, 3, 1, tzinfo=UTC)
    report(db, state=WorkerState.DRAINING, active=2, message_age_s=3.0, last_claim_at=claimed_at)
    worker = listed(db)["w1"]
    assert (worker.state, worker.active, worker.last_claim_at) == ("draining", 2, claimed_at)
    assert worker.started_at == before.started_at
    assert worker.last_message_at is not None
    assert 2.9 < (worker.seen_at - worker.last_message_at).total_seconds() < 3.1


def test_workers_of_one_host_name_are_two(db: Database) -> None:
    """Containers and autoscaled machines repeat names and process ids."""
    report(db, id="w1", active=1)
    report(db, id="w2", active=2)
    assert {worker.id: worker.active for worker in listed(db).values()} == {"w1": 1, "w2": 2}


def test_a_worker_that_fell_silent_is_lost_then_forgotten(db: Database, clock: Clock) -> None:
    report(db, id="silent")
    clock.advance(60)
    report(db, id="w1")
    assert {id_: workers.is_lost(worker) for id_, worker in listed(db).items()} == {
        "silent": True,
        "w1": False,
    }
    clock.advance(3600)
    report(db, id="w1")
    assert set(listed(db)) == {"w1"}


def test_a_worker_that_ends_in_order_is_forgotten_at_once(db: Database) -> None:
    report(db, id="w1")
    report(db, id="w2")
    db.run(workers.forget, "w1")
    assert set(listed(db)) == {"w2"}


@pytest.fixture
def run(db: Database, caller: Caller) -> int:
    taking = runs.job_taking(
        caller, JobSpec(name="echo", queue="onceonly"), key="k", ttl_s=600, metadata=None
    )
    taken = db.run(runs.take, caller, taking)
    assert isinstance(taken, Taken)
    return taken.run.id


def unserved(db: Database, *, queue: str = "onceonly", job: str = "echo") -> Unserved:
    return db.run(workers.unserved, [queue], [job], 30.0, GRACE_S)


def publish(db: Database) -> None:
    assert db.run(outbox.take_due, 10, GRACE_S, [])


def test_a_published_run_that_nobody_claims_is_unserved(db: Database, clock: Clock, run: int) -> None:
    clock.advance(31)
    assert unserved(db).runs == 0, "nobody has sent it"
    for pause_s in (3, 5, 9):  # the first publication, and three more
        publish(db)
        clock.advance(pause_s)
    publish(db)
    clock.advance(4)
    found = unserved(db)
    assert found.runs == 1
    assert found.published_ago_s is not None
    assert 4 <= found.published_ago_s < 5
    assert unserved(db, queue="other").runs == 0
    assert unserved(db, job="other").runs == 0

    assert db.run(claims.claim, run, "echo", 15.0, None) is not None
    assert unserved(db) == Unserved(runs=0, published_ago_s=None)


def test_a_run_that_was_just_due_is_not_unserved_yet(db: Database, clock: Clock, run: int) -> None:
    publish(db)
    clock.advance(20)
    assert unserved(db).runs == 0


def test_an_operator_sees_which_workers_serve_and_which_are_gone(
    db: Database, clock: Clock, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(db, id="silent")
    report(db, id="late", state=WorkerState.STUCK)
    clock.advance(60)
    report(db, id="w1", active=1)
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", database_url)
    done = CliRunner().invoke(build(["workers"]), ["workers", "list"])
    assert done.exit_code == 0, done.exception
    shown = {line.split()[1]: line.split()[3:6] for line in done.output.splitlines()[1:]}
    assert shown == {"silent": ["lost", "0", "2"], "late": ["stuck", "0", "2"], "w1": ["serving", "1", "2"]}
    counted = db.run(figures.read, None).workers
    assert counted == {"serving": 1}


def test_the_doctor_is_not_content_with_workers_that_are_gone(db: Database, clock: Clock) -> None:
    with pytest.raises(OnceOnlyError, match="0 at work"):
        checks.consuming(db)
    report(db, id="silent")
    clock.advance(60)
    with pytest.raises(OnceOnlyError, match="0 at work, 1 lost lately"):
        checks.consuming(db)
    report(db, id="w1")
    assert checks.consuming(db) == "1 at work, 1 lost lately"
