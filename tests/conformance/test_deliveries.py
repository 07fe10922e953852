"""How starts that end badly are counted: failures and crashes apart, and what is kept of each."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from onceonly_jobs.contracts.leases import CancelRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.services import claims, leases, outbox, runs
from onceonly_jobs.services.claims import Ending, Failure, Holder
from onceonly_jobs.services.outbox import Death
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock

JOB = JobSpec(name="echo", queue="q", max_attempts=3, max_crashes=2)
LEASE_S = 15.0
WEEK_S = 604_800


class Deployment:
    def __init__(self, db: Database, caller: Caller, clock: Clock) -> None:
        self.db = db
        self.caller = caller
        self.clock = clock

    def take(self) -> Taken:
        taking = runs.job_taking(self.caller, JOB, key="k", ttl_s=600, metadata=None)
        taken = self.db.run(runs.take, self.caller, taking)
        assert isinstance(taken, Taken)
        return taken

    def claim(self, pid: int = 1) -> Claim:
        run, holder = self.row()["id"], Holder("w", pid)
        claim = self.db.run(claims.claim, run, "echo", LEASE_S, None, holder=holder)
        assert claim is not None
        return claim

    def reap(self) -> None:
        self.clock.advance(LEASE_S + 1)
        assert len(self.db.run(outbox.reap, 10, WEEK_S)) == 1

    def died(self, claim: Claim, pid: int = 1, worker_id: str = "w", **death: Any) -> int:
        why = Death(worker_id=worker_id, pid=pid, why="killed by signal 9", **death)
        return len(self.db.run(outbox.died, why, claim.id, WEEK_S))

    def row(self) -> dict[str, Any]:
        with self.db.engine.connect() as connection:
            return dict(connection.execute(sa.text("SELECT * FROM runs")).mappings().one())

    def counts(self) -> tuple[str, int, int, int]:
        row = self.row()
        return row["state"], row["attempt"], row["failures"], row["crashes"]

    def told(self, *fields: str) -> list[tuple[Any, ...]]:
        return [tuple(error.get(field) for field in fields) for error in self.row()["errors"] or []]


@pytest.fixture
def deployment(db: Database, caller: Caller, clock: Clock) -> Deployment:
    deployment = Deployment(db, caller, clock)
    deployment.take()
    return deployment


def test_failures_crashes_and_hand_backs_are_counted_apart(deployment: Deployment) -> None:
    db = deployment.db
    db.run(claims.retry, deployment.claim(), 0, "handler_error", "ValueError: no")
    assert deployment.counts() == ("queued", 1, 1, 0)
    deployment.claim()
    deployment.reap()
    assert deployment.counts() == ("queued", 2, 1, 1)
    assert db.run(claims.hand_back, deployment.claim(), "its worker stops") is Ending.STORED
    assert deployment.counts() == ("queued", 3, 1, 1)
    claim = deployment.claim()
    assert (claim.failures, claim.crashes, claim.attempts_left) == (1, 1, 1)
    db.run(claims.end_as_failed, claim, Failure(error_code="timeout", message="late", kind="timeout"), WEEK_S)
    assert deployment.counts() == ("failed", 4, 2, 1)
    assert deployment.told("attempt", "kind", "code", "message", "worker", "pid") == [
        (1, "error", "handler_error", "ValueError: no", "w", 1),
        (2, "crash", "worker_lost", "no heartbeat: the lease of its worker expired", "w", 1),
        (3, "handed_back", "handed_back", "its worker stops", "w", 1),
        (4, "timeout", "timeout", "late", "w", 1),
    ]


def test_a_run_that_was_handed_back_is_due_at_once_however_often(deployment: Deployment) -> None:
    for _ in range(5):
        assert deployment.db.run(claims.hand_back, deployment.claim(), "stops") is Ending.STORED
        assert [due.key for due in deployment.db.run(outbox.take_due, 10, 2.0, [])] == ["k"]
    assert deployment.counts() == ("queued", 5, 0, 0)


def test_a_crash_after_many_failures_is_still_the_first_crash(deployment: Deployment) -> None:
    for _ in range(2):
        deployment.db.run(claims.retry, deployment.claim(), 0, "handler_error", "no")
    deployment.claim()
    deployment.reap()
    assert deployment.counts() == ("queued", 3, 2, 1)
    assert deployment.claim().attempts_left == 0


def test_a_run_that_kills_its_worker_is_a_dead_letter_with_each_death(deployment: Deployment) -> None:
    assert deployment.died(deployment.claim(pid=7), pid=7, signal=9) == 1
    assert deployment.counts() == ("queued", 1, 0, 1)
    assert [due.key for due in deployment.db.run(outbox.take_due, 10, 2.0, [])] == ["k"]
    assert deployment.died(deployment.claim(pid=8), pid=8, signal=11) == 1
    row = deployment.row()
    assert (row["state"], row["error_code"], row["dead_lettered"]) == ("failed", "worker_lost", True)
    assert deployment.told("attempt", "kind", "pid", "signal") == [(1, "crash", 7, 9), (2, "crash", 8, 11)]


@pytest.mark.parametrize("wrong", [{"pid": 2}, {"worker_id": "other"}])
def test_the_death_of_another_process_changes_nothing(deployment: Deployment, wrong: dict[str, Any]) -> None:
    claim = deployment.claim(pid=1)
    assert deployment.died(claim, **wrong) == 0
    assert deployment.db.run(claims.complete, claim, {}, WEEK_S) is Ending.STORED


def test_a_death_right_after_the_commit_changes_nothing(deployment: Deployment) -> None:
    """The first terminal state wins."""
    claim = deployment.claim()
    deployment.db.run(claims.complete, claim, {"n": 1}, WEEK_S)
    assert deployment.died(claim) == 0
    assert deployment.counts() == ("completed", 1, 0, 0)


def test_a_run_that_was_taken_back_is_refused_to_who_was_thought_dead(deployment: Deployment) -> None:
    claim = deployment.claim()
    deployment.died(claim)
    assert deployment.db.run(claims.complete, claim, {"n": 1}, WEEK_S) is Ending.LOST
    assert deployment.counts() == ("queued", 1, 0, 1)


def test_all_that_a_dead_process_held_is_taken_back(db: Database, deployment: Deployment) -> None:
    """A handler may carry another run out within its own."""
    claim = deployment.claim(pid=7)
    inner = runs.job_taking(deployment.caller, JOB, key="inner", ttl_s=600, metadata=None)
    other = runs.job_taking(deployment.caller, JOB, key="other", ttl_s=600, metadata=None)
    for taking, pid in ((inner, 7), (other, 8)):
        taken = db.run(runs.take, deployment.caller, taking)
        assert isinstance(taken, Taken)
        assert db.run(claims.claim, taken.run.id, "echo", LEASE_S, None, holder=Holder("w", pid)) is not None
    death = Death(worker_id="w", pid=7, why="gone")
    taken_back = db.run(outbox.died, death, claim.id, WEEK_S, others=True)
    assert {each.key for each in taken_back} == {"k", "inner"}


def test_a_cancelled_run_whose_worker_died_frees_its_key_at_once(deployment: Deployment) -> None:
    claim, lease_id = deployment.claim(), deployment.row()["lease_id"]
    request = CancelRequest(key="k", lease_id=lease_id)
    deployment.db.run(leases.cancel, deployment.caller, request, WEEK_S)
    assert deployment.take().outcome == "held"
    assert deployment.died(claim) == 0
    assert deployment.take().outcome == "acquired"


@pytest.mark.parametrize("worse", ["crash", "hold"])
def test_a_call_that_cannot_be_repeated_is_held_with_what_is_known(
    deployment: Deployment, worse: str
) -> None:
    claim = deployment.claim()
    with deployment.db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET effect = 'irreversible'")
    if worse == "crash":
        deployment.died(claim, signal=9)
    else:
        deployment.db.run(claims.hold_unknown, claim, "no answer", None)
    assert deployment.row()["state"] == "unknown"
    assert deployment.told("kind") == [("crash" if worse == "crash" else "error",)]


def test_a_new_taking_of_the_key_begins_anew(deployment: Deployment) -> None:
    first = deployment.claim()
    deployment.reap()
    claim = deployment.claim()
    deployment.db.run(claims.fail, claim, "no", None, WEEK_S)
    deployment.clock.advance(WEEK_S + 1)
    assert deployment.take().outcome == "acquired"
    row = deployment.row()
    assert (row["attempt"], row["failures"], row["crashes"], row["errors"]) == (0, 0, 0, None)
    assert (row["worker_id"], row["worker_pid"]) == (None, None)
    assert deployment.claim().fencing_token > claim.fencing_token > first.fencing_token


def test_the_newest_50_errors_are_kept(deployment: Deployment) -> None:
    for _ in range(52):
        deployment.db.run(claims.hand_back, deployment.claim(), "x" * 2000)
    assert [attempt for (attempt,) in deployment.told("attempt")] == list(range(3, 53))
    assert {len(message) for (message,) in deployment.told("message")} == {1000}


def test_tokens_grow_on_when_the_row_was_deleted_in_between(deployment: Deployment) -> None:
    first = deployment.claim()
    with deployment.db.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    deployment.take()
    assert deployment.claim().fencing_token > first.fencing_token


def test_a_token_of_the_previous_version_is_never_granted_again(deployment: Deployment) -> None:
    """Rolling restart: it adds 1 to a row's token, and may be ahead of the sequence."""
    with deployment.db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET fencing_token = 1000")
    assert deployment.claim().fencing_token == 1001
