"""Several runs claimed, kept, completed and given back at once: each under its own guard, as if it were alone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from support.locking import held_up_at
from support.storms import storm

from onceonly_jobs.contracts.leases import CancelRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.services import claims, claims_many, insights, leases, outbox, runs
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.services.claims_many import Progress
from onceonly_jobs.services.outbox import Death
from onceonly_jobs.store import database
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.claims import Beat, Holder
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock

LEASE_S = 15.0
WEEK_S = 604_800
HOLDER = Holder("w_1", 7)
_numbers = itertools.count(1)


class Deployment:
    """The runs of one queue, and workers that claim them, over a real database."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self.db = db
        self.caller = caller

    def submit(
        self, count: int, *, job: str = "echo", queue: str = "q", max_crashes: int = 3, **options: Any
    ) -> list[Taken]:
        spec = JobSpec(name=job, queue=queue, max_crashes=max_crashes)
        taken = []
        for _ in range(count):
            given = {"key": f"k{next(_numbers)}", "ttl_s": 600, "metadata": None, **options}
            taking = runs.job_taking(self.caller, spec, **given)
            answer = self.db.run(runs.take, self.caller, taking)
            assert isinstance(answer, Taken)
            taken.append(answer)
        return taken

    def claim(
        self, count: int = 64, *, jobs: Collection[str] = ("echo",), holder: Holder = HOLDER
    ) -> list[Claim]:
        lease_id = claims.new_lease_id()
        return self.db.run(claims_many.claim_due, count, "q", jobs, lease_id, LEASE_S, holder)

    def claimed(self, count: int, **options: Any) -> list[Claim]:
        self.submit(count, **options)
        found = self.claim(count)
        assert len(found) == count
        return found

    def complete(self, held: Sequence[Claim]) -> list[Ending]:
        items = [claims_many.completion(claim, {"n": claim.id}) for claim in held]
        return self.db.run(claims_many.complete_many, items, WEEK_S)

    def cancel(self, claim: Claim) -> None:
        request = CancelRequest(key=claim.key, lease_id=self.row(claim)["lease_id"])
        self.db.run(leases.cancel, self.caller, request, WEEK_S)

    def row(self, claim: Claim) -> dict[str, Any]:
        with self.db.engine.connect() as connection:
            query = sa.text("SELECT * FROM runs WHERE id = :id")
            return dict(connection.execute(query, {"id": claim.id}).mappings().one())

    def states(self, held: Sequence[Claim]) -> list[RunState]:
        return [RunState(self.row(claim)["state"]) for claim in held]

    def timeline(self, claim: Claim) -> list[str]:
        return [event.type for event in self.db.run(insights.timeline, self.caller, claim.run_id, 100, 0)[1]]


@pytest.fixture
def deployment(db: Database, caller: Caller) -> Deployment:
    return Deployment(db, caller)


def test_concurrent_claimers_never_get_the_same_run(deployment: Deployment) -> None:
    deployment.submit(60)
    got = [claim.id for found in storm(8, lambda: deployment.claim(10)) for claim in found]
    assert len(got) == len(set(got))
    assert len(got) + len(deployment.claim()) == 60


def test_a_batch_is_ordered_by_its_tokens_which_all_differ(deployment: Deployment) -> None:
    """A worker starts them in that order, and tells by it how far it has come."""
    held = deployment.claimed(20)
    tokens = [claim.fencing_token for claim in held]
    assert tokens == sorted(set(tokens))
    assert {claim.lease_id for claim in held} == {held[0].lease_id}
    assert {claim.attempt for claim in held} == {1}


def test_a_claim_by_a_message_and_a_batch_never_both_get_a_run(deployment: Deployment) -> None:
    ids = [taken.run.id for taken in deployment.submit(12)]

    def by_message() -> list[Claim]:
        found = (deployment.db.run(claims.claim, run, "echo", LEASE_S, None) for run in reversed(ids))
        return [claim for claim in found if claim is not None]

    questions = iter([by_message, lambda: deployment.claim(12), by_message, lambda: deployment.claim(12)])
    got = [claim.id for found in storm(4, lambda: next(questions)()) for claim in found]
    assert sorted(got) == sorted(ids)


def test_what_is_not_light_or_not_due_is_left(deployment: Deployment, clock: Clock) -> None:
    deployment.submit(1, job="other")
    deployment.submit(1, queue="elsewhere")
    deployment.submit(1, max_crashes=1)
    deployment.submit(1, delay_s=60)
    deployment.submit(1, publish_grace_s=2)
    assert deployment.claim() == []
    clock.advance(3)
    assert len(deployment.claim()) == 1
    clock.advance(60)
    assert len(deployment.claim()) == 1


def test_a_run_that_was_started_before_goes_alone(deployment: Deployment, clock: Clock) -> None:
    failed, handed_back, crashed = deployment.claimed(3)
    deployment.db.run(claims.retry, failed, 0, "handler_error", "x")
    deployment.db.run(claims.hand_back, handed_back, "x")
    clock.advance(LEASE_S + 1)
    assert len(deployment.db.run(outbox.reap, 10, WEEK_S)) == 1
    assert deployment.states([failed, handed_back, crashed]) == [RunState.QUEUED] * 3
    assert deployment.claim() == []


def test_a_backlog_in_front_hides_what_is_behind_and_nothing_worse(deployment: Deployment) -> None:
    with deployment.db.engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO runs (tenant_id, key, owner, state, run_id, lease_id, lease_ttl_s, job, queue,
                                  first_seen_at, publish_at, due_at)
                SELECT 't', 'b' || n, 'server', 'queued', 'b' || n, 'l', 60, 'x', 'x', onceonly_now(),
                       onceonly_now(), onceonly_now() FROM generate_series(1, 500) n
            """)
        )
    deployment.submit(1)
    assert deployment.claim() == []


def test_an_answer_that_got_lost_is_found_again(deployment: Deployment) -> None:
    deployment.submit(3)
    first = deployment.db.run(claims_many.claim_due, 2, "q", ["echo"], "wl_x", LEASE_S, HOLDER)
    again = deployment.db.run(claims_many.claim_due, 2, "q", ["echo"], "wl_x", LEASE_S, HOLDER, repeated=True)
    assert again == first


def test_results_are_stored_like_single_ones(deployment: Deployment) -> None:
    """Same timeline, feed, outcome and hash."""
    alone, *others = deployment.claimed(4)
    assert deployment.db.run(claims.complete, alone, {"n": 1}, WEEK_S, cost_usd=0.5) is Ending.STORED
    items = [claims_many.completion(claim, {"n": 1}, 0.5) for claim in others]
    assert deployment.db.run(claims_many.complete_many, items, WEEK_S) == [Ending.STORED] * 3

    def left_behind(claim: Claim) -> list[Any]:
        queries = (
            "SELECT type, status, tool, data->'attempt' AS attempt FROM run_events WHERE run_id = :key ORDER BY id",
            "SELECT last_type, last_status, events_count FROM timelines WHERE run_id = :key",
            "SELECT type, kind, status FROM feed_events WHERE key = :key ORDER BY id",
            "SELECT outcome, error_code, spend_micro_usd, overrun FROM audit_outcomes WHERE decision_id = :decision",
            "SELECT state, version, result_hash, CAST(result AS text), attempt, publish_at, lease_until_at IS NULL "
            "FROM runs WHERE key = :key",
        )
        given = {"key": claim.key, "decision": claim.decision_id}
        with deployment.db.engine.connect() as connection:
            return [connection.execute(sa.text(query), given).all() for query in queries]

    expected = left_behind(alone)
    assert all(expected)
    assert [left_behind(claim) for claim in others] == [expected] * 3


def test_each_of_a_batch_is_refused_for_itself(deployment: Deployment, clock: Clock) -> None:
    """Cancelled, taken over, overdue: the others are stored, and every refusal leaves its trace."""
    (overdue,) = deployment.claimed(1, ttl_s=60)
    good, cancelled, stolen, last = deployment.claimed(4)
    deployment.cancel(cancelled)
    deployment.db.run(claims.hand_back, stolen, "x")
    assert deployment.db.run(claims.claim, stolen.id, "echo", LEASE_S, None) is not None
    deployment.db.run(claims_many.keep, [good, overdue, last], 100)
    clock.advance(61)
    assert deployment.complete([good, cancelled, overdue, stolen, last]) == [
        Ending.STORED,
        Ending.CANCELLED,
        Ending.OVERDUE,
        Ending.LOST,
        Ending.STORED,
    ]
    assert "stale_write_refused" in deployment.timeline(stolen)


@pytest.mark.parametrize("changed", ["fencing_token", "lease_id"])
def test_a_wrong_token_or_lease_stores_nothing(deployment: Deployment, changed: str) -> None:
    good, bad = deployment.claimed(2)
    wrong = replace(bad, fencing_token=bad.fencing_token - 1) if changed == "fencing_token" else None
    stale = wrong or replace(bad, lease_id="wl_other")
    assert deployment.complete([stale, good]) == [Ending.LOST, Ending.STORED]
    assert deployment.db.run(claims_many.give_back, [stale]) == set()
    assert deployment.db.run(claims_many.keep, [stale, bad], LEASE_S) == {bad.id}
    assert deployment.states([bad]) == [RunState.IN_PROGRESS]


def test_expired_claims_store_nothing(deployment: Deployment, clock: Clock) -> None:
    held = deployment.claimed(3)
    clock.advance(LEASE_S)
    assert deployment.complete(held) == [Ending.LOST] * 3
    assert deployment.states(held) == [RunState.IN_PROGRESS] * 3


def test_a_repeat_after_a_lost_answer_finds_all_stored(deployment: Deployment) -> None:
    held = deployment.claimed(3)
    assert deployment.complete(held) == deployment.complete(held) == [Ending.STORED] * 3
    assert [deployment.timeline(claim).count("run_finished") for claim in held] == [1, 1, 1]


def test_two_processes_that_store_the_same_results_store_each_once(deployment: Deployment) -> None:
    held = deployment.claimed(20)
    orders = iter([held, held[::-1]] * 4)
    endings = storm(8, lambda: deployment.complete(next(orders)))
    assert all(ending is Ending.STORED for each in endings for ending in each)
    assert {deployment.timeline(claim).count("run_finished") for claim in held} == {1}


def test_claims_are_kept_together(deployment: Deployment, clock: Clock) -> None:
    held = deployment.claimed(3)
    for _ in range(3):
        clock.advance(LEASE_S - 1)
        assert deployment.db.run(claims_many.keep, held, LEASE_S) == {claim.id for claim in held}
    assert isinstance(deployment.db.run(claims.heartbeat, held[0], LEASE_S), Beat)
    assert deployment.complete(held) == [Ending.STORED] * 3


def test_keeping_and_completing_do_not_wait_for_each_other_in_a_circle(
    deployment: Deployment, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is in the order of its tokens: of what was due first, whichever row is the older."""
    (older,) = deployment.submit(1, delay_s=50)
    deployment.submit(1, delay_s=10)
    clock.advance(60)
    held = deployment.claim()
    assert [claim.id for claim in held] != sorted(claim.id for claim in held)
    monkeypatch.setattr(database, "DEADLOCK_RETRIES", 0)
    completed, kept = held_up_at(
        deployment.db,
        older.run.key,
        lambda: deployment.complete(held),
        lambda: deployment.db.run(claims_many.keep, held, LEASE_S),
    )
    assert completed == [Ending.STORED] * 2
    assert kept == set()


def test_what_is_given_back_counts_as_never_claimed(deployment: Deployment) -> None:
    held = deployment.claimed(3)
    deployment.cancel(held[1])
    back = deployment.db.run(claims_many.give_back, held)
    assert back == {held[0].id, held[2].id}
    rows = [deployment.row(claim) for claim in held]
    assert [(row["attempt"], row["failures"], row["crashes"], row["errors"]) for row in rows[::2]] == [
        (0, 0, 0, None)
    ] * 2
    deployment.submit(1, key=held[1].key, publish_grace_s=60)  # a cancelled one has let go of its key
    assert deployment.timeline(held[0]) == ["run_queued", "run_started", "run_retried"]
    again = deployment.claim()
    assert {claim.id for claim in again} == back
    assert all(claim.attempt == 1 for claim in again)
    assert deployment.complete(held) == [Ending.LOST] * 3


def test_of_what_a_dead_process_held_only_the_run_at_work_is_a_crash(deployment: Deployment) -> None:
    returned, at_work, *waiting = deployment.claimed(5)
    deployment.submit(1)
    (foreign,) = deployment.claim(holder=Holder("w_1", 8))
    progress = Progress(at_work.fencing_token, at_work=True)
    spared = deployment.db.run(claims_many.spare, "w_1", 7, 0, progress)
    assert spared == {returned.id, *(claim.id for claim in waiting)}
    death = Death(worker_id="w_1", pid=7, why="x", signal=9)
    taken_back = deployment.db.run(outbox.died, death, 0, WEEK_S, others=True)
    assert [each.key for each in taken_back] == [at_work.key]
    counted = [(row["attempt"], row["crashes"]) for row in map(deployment.row, [returned, at_work, *waiting])]
    assert counted == [(1, 0), (1, 1), (0, 0), (0, 0), (0, 0)]
    assert deployment.states([foreign]) == [RunState.IN_PROGRESS]
    assert {claim.id for claim in deployment.claim()} == {claim.id for claim in waiting}


def test_a_process_that_died_between_two_handlers_has_crashed_none(deployment: Deployment) -> None:
    first, second = deployment.claimed(2)
    progress = Progress(first.fencing_token, at_work=False)
    assert deployment.db.run(claims_many.spare, "w_1", 7, 0, progress) == {first.id, second.id}
    rows = [deployment.row(claim) for claim in (first, second)]
    assert [(row["attempt"], row["crashes"]) for row in rows] == [(1, 0), (0, 0)]
    assert [error["kind"] for error in rows[0]["errors"]] == ["handed_back"]
