"""Claims of workers: one at a time, only while current; and how due runs get out to the broker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from support.storms import storm

from onceonly_jobs.contracts.leases import CancelRequest, CompleteRequest, ExtendRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import LeaseConflict
from onceonly_jobs.services import audit, claims, insights, leases, outbox, runs
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.claims import Beat
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.store.statement import Operation, autocommit
from onceonly_jobs.testing import Clock

ECHO = JobSpec(name="echo", queue="q", max_attempts=2, max_crashes=2)
LEASE_S = 15.0
WEEK_S = 604_800


class Deployment:
    """One job's runs and workers, over a real database."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self.db = db
        self.caller = caller

    def submit(
        self, key: str = "k", *, delay_s: float = 0, ttl: int = 600, run_id: str | None = None
    ) -> Taken:
        metadata = None if run_id is None else {"run_id": run_id}
        taking = runs.job_taking(self.caller, ECHO, key=key, ttl_s=ttl, metadata=metadata, delay_s=delay_s)
        taken = self.db.run(runs.take, self.caller, taking)
        assert isinstance(taken, Taken)
        return taken

    def claim(self, run: int) -> Claim | None:
        return self.db.run(claims.claim, run, "echo", LEASE_S, None)

    def claimed(self, key: str = "k", **options: Any) -> Claim:
        claim = self.claim(self.submit(key, **options).run.id)
        assert claim is not None
        return claim

    def reap(self) -> list[str]:
        return [reaped.key for reaped in self.db.run(outbox.reap, 100, WEEK_S)]

    def due(self, full: list[str] | None = None) -> list[str]:
        return [due.key for due in self.db.run(outbox.take_due, 100, 2.0, full or [])]

    def next_publication_s(self) -> int:
        with self.db.engine.connect() as connection:
            wait = sa.text("SELECT round(extract(epoch FROM publish_at - onceonly_now())) FROM runs")
            return int(connection.execute(wait).scalar_one())

    def state(self, key: str = "k") -> RunState:
        return self.db.run(runs.find, self.caller.tenant_id, key).state

    def timeline(self, run_id: str = "k") -> list[str]:
        return [event.type for event in self.db.run(insights.timeline, self.caller, run_id, 100, 0)[1]]


@pytest.fixture
def deployment(db: Database, caller: Caller) -> Deployment:
    return Deployment(db, caller)


def test_of_many_workers_with_one_message_exactly_one_claims(deployment: Deployment) -> None:
    run = deployment.submit().run.id
    got = storm(12, lambda: deployment.claim(run))
    assert len([claim for claim in got if claim is not None]) == 1
    assert deployment.timeline() == ["run_queued", "run_started"]


def test_a_run_is_not_claimed_before_it_is_due(deployment: Deployment, clock: Clock) -> None:
    run = deployment.submit(delay_s=60).run.id
    assert deployment.claim(run) is None
    assert deployment.due() == []
    clock.advance(60)
    assert deployment.due() == ["k"]
    assert deployment.claim(run) is not None


def test_a_message_for_another_job_claims_nothing(deployment: Deployment) -> None:
    run = deployment.submit().run.id
    assert deployment.db.run(claims.claim, run, "other", LEASE_S, None) is None


def test_each_grant_has_a_larger_fencing_token_and_a_new_lease(deployment: Deployment, clock: Clock) -> None:
    first = deployment.claimed()
    clock.advance(LEASE_S + 1)
    assert deployment.reap() == ["k"]
    second = deployment.claim(first.id)
    assert second is not None
    assert second.fencing_token > first.fencing_token
    assert second.lease_id != first.lease_id
    assert (first.attempt, second.attempt) == (1, 2)


def test_a_heartbeat_keeps_the_claim(deployment: Deployment, clock: Clock) -> None:
    claim = deployment.claimed()
    for _ in range(4):
        clock.advance(LEASE_S - 1)
        assert isinstance(deployment.db.run(claims.heartbeat, claim, LEASE_S), Beat)
        assert deployment.reap() == []


def test_an_expired_claim_is_lost_even_before_anybody_takes_it(deployment: Deployment, clock: Clock) -> None:
    claim = deployment.claimed()
    clock.advance(LEASE_S)
    assert deployment.db.run(claims.heartbeat, claim, LEASE_S) is Ending.LOST
    assert deployment.db.run(claims.complete, claim, {"late": True}, WEEK_S) is Ending.LOST
    assert deployment.state() is RunState.IN_PROGRESS


@pytest.mark.parametrize("doing", ["complete", "fail", "retry", "heartbeat", "progress"])
def test_a_zombie_changes_nothing_and_leaves_a_trace(
    deployment: Deployment, clock: Clock, doing: str
) -> None:
    zombie = deployment.claimed()
    clock.advance(LEASE_S + 1)
    deployment.reap()
    holder = deployment.claim(zombie.id)
    assert holder is not None
    db = deployment.db
    attempts: dict[str, Any] = {
        "complete": lambda: db.run(claims.complete, zombie, {"z": 1}, WEEK_S),
        "fail": lambda: db.run(claims.fail, zombie, "x", None, WEEK_S),
        "retry": lambda: db.run(claims.retry, zombie, 0, "x", "x"),
        "heartbeat": lambda: db.run(claims.heartbeat, zombie, LEASE_S),
        "progress": lambda: db.run(claims.report_progress, zombie, {"p": 1}, None),
    }
    assert attempts[doing]() in (Ending.LOST, False)
    assert deployment.state() is RunState.IN_PROGRESS
    assert ("stale_write_refused" in deployment.timeline()) == (doing in ("complete", "fail", "retry"))
    assert db.run(claims.complete, holder, {"h": 1}, WEEK_S) is Ending.STORED
    assert db.run(runs.find, deployment.caller.tenant_id, "k").result == {"h": 1}


def test_completing_again_after_a_lost_answer_is_success(deployment: Deployment) -> None:
    claim = deployment.claimed()
    assert deployment.db.run(claims.complete, claim, {"n": 1}, WEEK_S) is Ending.STORED
    assert deployment.db.run(claims.complete, claim, {"n": 2}, WEEK_S) is Ending.STORED
    assert deployment.db.run(runs.find, deployment.caller.tenant_id, "k").result == {"n": 1}
    assert deployment.timeline().count("run_finished") == 1


def test_a_dead_workers_run_is_queued_again_and_dead_lettered_after_its_last_crash(
    deployment: Deployment, clock: Clock
) -> None:
    claim = deployment.claimed()
    clock.advance(LEASE_S + 1)
    assert deployment.reap() == ["k"]
    assert deployment.state() is RunState.QUEUED
    assert deployment.due() == ["k"]
    assert deployment.claim(claim.id) is not None
    clock.advance(LEASE_S + 1)
    reaped = deployment.db.run(outbox.reap, 100, WEEK_S)
    assert [(one.key, one.finished) for one in reaped] == [("k", True)]
    run = deployment.db.run(runs.find, deployment.caller.tenant_id, "k")
    assert (run.state, run.error_code) == (RunState.FAILED, "worker_lost")


def test_a_result_after_the_time_limit_is_refused_and_the_run_is_still_its_own_to_fail(
    deployment: Deployment, clock: Clock
) -> None:
    claim = deployment.claimed(ttl=20)
    clock.advance(14)
    deployment.db.run(claims.heartbeat, claim, LEASE_S)
    clock.advance(7)
    beat = deployment.db.run(claims.heartbeat, claim, LEASE_S)
    assert isinstance(beat, Beat)
    assert beat.overdue
    assert deployment.db.run(claims.complete, claim, {"late": 1}, WEEK_S) is Ending.OVERDUE
    assert deployment.db.run(claims.fail, claim, "timeout", None, WEEK_S) is Ending.STORED


def test_a_result_that_an_extension_has_saved_meanwhile_is_stored(
    deployment: Deployment, clock: Clock
) -> None:
    """The refusal is looked into a moment after it was made: by then the requester may have moved the limit."""
    taken = deployment.submit(ttl=20)
    claim = deployment.claim(taken.run.id)
    assert claim is not None
    clock.advance(14)
    deployment.db.run(claims.heartbeat, claim, LEASE_S)
    clock.advance(7)
    extend = ExtendRequest(key="k", lease_id=taken.run.lease_id, ttl=600)

    def overtaken() -> Operation[Ending]:
        completion = claims.complete(claim, {"n": 1}, WEEK_S)
        refusal = yield next(completion)
        deployment.db.run(leases.extend, deployment.caller, extend)
        try:
            statement = completion.send(refusal)
            while True:
                statement = completion.send((yield statement))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    assert deployment.db.run(autocommit(overtaken)) is Ending.STORED
    assert deployment.db.run(runs.find, deployment.caller.tenant_id, "k").result == {"n": 1}
    assert "stale_write_refused" not in deployment.timeline()


def test_the_requesters_handle_moves_the_time_limit_and_owns_no_outcome(
    deployment: Deployment, clock: Clock
) -> None:
    taken = deployment.submit(ttl=20)
    claim = deployment.claim(taken.run.id)
    assert claim is not None
    extend = ExtendRequest(key="k", lease_id=taken.run.lease_id, ttl=600)
    assert deployment.db.run(leases.extend, deployment.caller, extend).ttl_left_s() == 600
    request = CompleteRequest(key="k", lease_id=taken.run.lease_id, result={})
    with pytest.raises(LeaseConflict) as refused:
        deployment.db.run(leases.complete, deployment.caller, request, WEEK_S)
    assert refused.value.detail["reason"] == "not_owner"  # type: ignore[index]


@pytest.mark.parametrize("announced", [None, 300])
def test_no_extension_moves_the_limit_that_its_worker_claimed_with(
    deployment: Deployment, announced: int | None
) -> None:
    """Whatever has become of the job's own limit since: the handler runs under the one of its worker."""
    taken = deployment.submit(ttl=20)
    claim = deployment.db.run(claims.claim, taken.run.id, "echo", LEASE_S, 30)
    assert claim is not None
    deployment.db.run(claims.announce, [replace(ECHO, time_limit_s=announced)])
    extend = ExtendRequest(key="k", lease_id=taken.run.lease_id, ttl=600)
    assert deployment.db.run(leases.extend, deployment.caller, extend).ttl_left_s() == 30


def test_a_cancelled_running_job_holds_its_key_until_its_worker_has_stopped(
    deployment: Deployment,
) -> None:
    taken = deployment.submit()
    claim = deployment.claim(taken.run.id)
    assert claim is not None
    cancel = CancelRequest(key="k", lease_id=taken.run.lease_id)
    deployment.db.run(leases.cancel, deployment.caller, cancel, WEEK_S)
    assert deployment.state() is RunState.CANCELLED
    assert deployment.submit().outcome == "held"
    assert deployment.db.run(claims.heartbeat, claim, LEASE_S) is Ending.CANCELLED
    deployment.db.run(claims.release, claim)
    assert deployment.submit().outcome == "acquired"
    assert deployment.db.run(claims.complete, claim, {"late": 1}, WEEK_S) is Ending.LOST


def test_a_cancelled_jobs_key_is_free_when_its_workers_lease_ends(
    deployment: Deployment, clock: Clock
) -> None:
    taken = deployment.submit()
    deployment.claim(taken.run.id)
    cancel = CancelRequest(key="k", lease_id=taken.run.lease_id)
    deployment.db.run(leases.cancel, deployment.caller, cancel, WEEK_S)
    clock.advance(LEASE_S + 1)
    assert deployment.reap() == []
    assert deployment.submit().outcome == "acquired"


def test_an_unclaimed_run_is_published_again_at_doubling_intervals(
    deployment: Deployment, clock: Clock
) -> None:
    deployment.submit()
    intervals = []
    for _ in range(11):
        assert deployment.due() == ["k"]
        intervals.append(deployment.next_publication_s())
        clock.advance(intervals[-1])
    assert intervals == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_relays_at_work_at_once_take_different_runs_and_none_waits(deployment: Deployment) -> None:
    for n in range(6):
        deployment.submit(f"k{n}")
    with deployment.db.engine.connect() as other:
        theirs = on(other, outbox.take_due(4, 2.0, []))
        with deployment.db.engine.connect() as mine, mine.begin():
            mine.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
            ours = on(mine, outbox.take_due(4, 2.0, []))
        other.commit()
    assert (len(theirs), len(ours)) == (4, 2)
    assert {due.key for due in theirs} | {due.key for due in ours} == {f"k{n}" for n in range(6)}
    assert deployment.due() == []


def test_runs_of_a_full_queue_stay_where_they_are(deployment: Deployment) -> None:
    deployment.submit()
    assert deployment.due(full=["q"]) == []
    assert deployment.due() == ["k"]


def test_after_a_wiped_broker_everything_due_is_publishable_at_once(deployment: Deployment) -> None:
    for key in ("a", "b"):
        deployment.submit(key)
    deployment.submit("later", delay_s=600)
    assert sorted(deployment.due()) == ["a", "b"]
    assert deployment.due() == []
    assert deployment.db.run(outbox.republish_all) == 2
    assert sorted(deployment.due()) == ["a", "b"]


def test_runs_that_share_a_timeline_can_be_reaped_together(deployment: Deployment, clock: Clock) -> None:
    for key in ("a", "b", "c"):
        deployment.claimed(key, run_id="shared")
    clock.advance(LEASE_S + 1)
    assert sorted(deployment.reap()) == ["a", "b", "c"]
    total, events = deployment.db.run(insights.timeline, deployment.caller, "shared", 100, 0)
    assert total == len(events) == 12


def test_each_accepted_run_has_one_decision_and_one_outcome(deployment: Deployment) -> None:
    claim = deployment.claimed()
    [pending] = deployment.db.run(audit.decisions_of, deployment.caller.tenant_id, "k")
    assert (pending.allowed, pending.decision, pending.outcome) == (True, "executed", None)
    deployment.db.run(claims.complete, claim, {}, WEEK_S)
    deployment.db.run(claims.complete, claim, {}, WEEK_S)
    [entry] = deployment.db.run(audit.decisions_of, deployment.caller.tenant_id, "k")
    assert (entry.decision_id, entry.actor, entry.outcome) == (
        pending.decision_id,
        deployment.caller.key_id,
        "completed",
    )
