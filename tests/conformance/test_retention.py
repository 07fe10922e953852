"""What is old is deleted, whatever may still be asked for is not, and nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from support.storms import storm

from onceonly_jobs.contracts.events import EventRequest
from onceonly_jobs.contracts.leases import CancelRequest, CompleteRequest, LeaseRequest
from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.errors import NotFound
from onceonly_jobs.services import claims, dead, insights, leases, locks, retention, runs
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.retention import IN_HAND_S, Kept, Kind
from onceonly_jobs.testing import Clock

HOUR_S = 3600
DAY_S = 86_400
KEPT = Kept(actions_s=HOUR_S, events_s=30 * DAY_S)
ECHO = JobSpec(name="echo", queue="q", max_attempts=1)
LEASE_S = 15.0


class Storage:
    """One tenant's rows, and their pruning."""

    def __init__(self, db: Database, caller: Caller, owner_url: str) -> None:
        self.db, self.caller = db, caller
        self.owner = sa.create_engine(owner_url, poolclass=sa.NullPool)
        self.sql("SELECT setval('fencing_tokens', 1000)")

    def sql(self, statement: str) -> Any:
        with self.owner.begin() as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalars().all() if result.returns_rows else None

    def submit(self, key: str, run_id: str | None = None, delay_s: float = 0) -> int:
        metadata = None if run_id is None else {"run_id": run_id}
        taking = runs.job_taking(self.caller, ECHO, key=key, ttl_s=60, metadata=metadata, delay_s=delay_s)
        return self.db.run(runs.take, self.caller, taking).run.id

    def claim(self, key: str, **options: Any) -> Claim:
        claim = self.db.run(claims.claim, self.submit(key, **options), "echo", LEASE_S, None)
        assert claim is not None
        return claim

    def complete(self, key: str, **options: Any) -> Claim:
        claim = self.claim(key, **options)
        assert self.db.run(claims.complete, claim, {"ok": key}, HOUR_S) is Ending.STORED
        return claim

    def lease(self, key: str) -> tuple[str, int]:
        taken = self.db.run(
            runs.take, self.caller, runs.lease_taking(self.caller, LeaseRequest(key=key, ttl=60))
        )
        assert taken.outcome == "acquired"
        return taken.run.lease_id, taken.run.fencing_token

    def lock(self, key: str) -> str:
        return self.db.run(locks.check, self.caller, CheckLockRequest(key=key, ttl=60), None).status

    def outcome(self, key: str) -> str:
        taking = runs.lease_taking(self.caller, LeaseRequest(key=key, ttl=60))
        return self.db.run(runs.take, self.caller, taking).outcome

    def end(self, key: str) -> None:
        """Complete whatever lease has the key."""
        lease_id = self.sql(f"SELECT lease_id FROM runs WHERE key = '{key}'")[0]
        request = CompleteRequest(key=key, lease_id=lease_id, result={})
        self.db.run(leases.complete, self.caller, request, HOUR_S)

    def finished(self, key: str) -> None:
        """An ended lease and an old lock under a key."""
        self.lease(key)
        self.end(key)
        self.lock(key)

    def event(self, run_id: str) -> None:
        self.db.run(insights.post_event, self.caller, EventRequest(run_id=run_id, type="note"))

    def prune(self, kind: Kind, batch: int = 100) -> int:
        expected = self.db.run(retention.prunable, kind, KEPT)
        total = 0
        while deleted := self.db.run(retention.prune, kind, KEPT, batch):
            total += deleted
        assert total == expected, "what is counted is what is deleted"
        return total

    def keys(self) -> list[str]:
        return sorted(self.sql("SELECT key FROM runs"))


@pytest.fixture
def storage(db: Database, caller: Caller, owner_url: str) -> Storage:
    return Storage(db, caller, owner_url)


def test_finished_runs_go_after_their_retention_and_not_before(storage: Storage, clock: Clock) -> None:
    storage.complete("completed")
    storage.db.run(claims.fail, storage.claim("failed"), "x", None, HOUR_S)
    lease_id, _ = storage.lease("cancelled")
    storage.db.run(leases.cancel, storage.caller, CancelRequest(key="cancelled", lease_id=lease_id), HOUR_S)
    clock.advance(HOUR_S)
    assert storage.prune(Kind.RUNS) == 0, "somebody may have just read that they are there"
    clock.advance(IN_HAND_S)
    assert storage.prune(Kind.RUNS, batch=2) == 3
    assert storage.keys() == []


def test_what_has_not_ended_is_never_deleted(storage: Storage, clock: Clock) -> None:
    storage.submit("queued", delay_s=3 * 365 * DAY_S)
    storage.lease("leased")
    storage.claim("claimed")
    storage.db.run(claims.hold_unknown, storage.claim("unknown"), "may have happened", None)
    clock.advance(2 * 365 * DAY_S)
    pruned = {kind: storage.prune(kind) for kind in Kind}
    assert {kind for kind, rows in pruned.items() if rows} == {Kind.FEED}
    assert storage.keys() == ["claimed", "leased", "queued", "unknown"]
    assert len(storage.sql("SELECT id FROM run_events")) >= 4, "their timelines stay with them"


def test_a_cancelled_run_stays_while_its_worker_may_be_at_it(storage: Storage, clock: Clock) -> None:
    claim = storage.claim("k")
    handle = storage.sql("SELECT lease_id FROM runs")[0]
    storage.db.run(leases.cancel, storage.caller, CancelRequest(key="k", lease_id=handle), 1)
    storage.sql("UPDATE runs SET lease_until_at = onceonly_now() + interval '1 day'")
    clock.advance(HOUR_S)
    assert storage.prune(Kind.RUNS) == 0
    storage.db.run(claims.release, claim)
    assert storage.prune(Kind.RUNS) == 1


def test_a_keys_tokens_grow_on_after_its_row_was_deleted(storage: Storage, clock: Clock) -> None:
    """A row whose token the next one would not exceed stays, whoever gave it such a token."""
    for key, token in (("below", 1000), ("next", 1001), ("above", 5000)):
        storage.complete(key)
        storage.sql(f"UPDATE runs SET fencing_token = {token} WHERE key = '{key}'")
    storage.sql("SELECT setval('fencing_tokens', 1000)")
    clock.advance(2 * HOUR_S)
    assert storage.prune(Kind.RUNS) == 1
    assert storage.keys() == ["above", "next"]
    storage.sql("SELECT setval('fencing_tokens', 5000, false)")
    assert storage.prune(Kind.RUNS) == 1
    assert storage.keys() == ["above"]


def test_what_was_decided_on_a_runs_actions_goes_with_it(storage: Storage, clock: Clock) -> None:
    """And a call stays while an action has yet to read how it ended."""
    acting, call = storage.complete("acting"), storage.complete("call")
    storage.sql("UPDATE runs SET job = 'onceonly.actions' WHERE key = 'acting'")
    add = (
        "INSERT INTO run_actions (tenant_id, run_decision_id, position, decision_id, code, call_key, call_id, done_at)"
        f" SELECT tenant_id, decision_id, 0, 1, 'ok', 'call', {call.id}, {{done}} FROM runs WHERE key = 'acting'"
    )
    storage.sql(add.format(done="NULL"))
    storage.sql("UPDATE runs SET retain_until_at = retain_until_at + interval '1 day' WHERE key = 'acting'")
    clock.advance(2 * HOUR_S)
    assert (storage.prune(Kind.RUNS), storage.prune(Kind.ACTIONS)) == (0, 0)
    storage.sql("UPDATE run_actions SET done_at = onceonly_now()")
    assert storage.prune(Kind.RUNS) == 1
    assert storage.keys() == ["acting"]
    clock.advance(DAY_S)
    assert storage.prune(Kind.RUNS) == 1
    assert storage.sql("SELECT position FROM run_actions") == []
    assert acting.decision_id is not None


def test_actions_of_a_run_whose_key_was_taken_again_go_too(storage: Storage, clock: Clock) -> None:
    storage.sql(
        "INSERT INTO run_actions (tenant_id, run_decision_id, position, decision_id, code, call_key)"
        " VALUES ('t', 7, 0, 1, 'ok', 'k')"
    )
    assert storage.prune(Kind.ACTIONS) == 0
    clock.advance(HOUR_S + 1)
    assert storage.prune(Kind.ACTIONS) == 1


def test_expired_locks_go_and_held_ones_stay(storage: Storage, clock: Clock) -> None:
    storage.lock("old")
    clock.advance(60)
    storage.lock("new")
    assert storage.prune(Kind.LOCKS) == 1
    assert storage.sql("SELECT key FROM locks") == ["new"]
    assert storage.lock("old") == "locked"


def test_a_silent_timeline_goes_with_its_events_in_batches(storage: Storage, clock: Clock) -> None:
    storage.complete("done", run_id="shared")
    storage.submit("waiting", run_id="live", delay_s=90 * DAY_S)
    for _ in range(5):
        storage.event("loose")
    clock.advance(31 * DAY_S)
    storage.event("loud")
    assert storage.db.run(retention.prune, Kind.EVENTS, KEPT, 4) == 4
    heads = "SELECT run_id || events_count FROM timelines ORDER BY 1"
    counted = "SELECT run_id || count(*) FROM run_events GROUP BY run_id ORDER BY 1"
    assert storage.sql(heads) == storage.sql(counted), "what is left of a timeline is what its head says"
    storage.prune(Kind.EVENTS, batch=4)
    assert storage.sql(heads) == storage.sql(counted) == ["live1", "loud1"]


def test_a_timeline_stays_while_a_replayed_run_waits(storage: Storage, clock: Clock) -> None:
    """Of its first start nothing is told any more."""
    failed = storage.claim("k")
    storage.db.run(claims.fail, failed, "x", None, 90 * DAY_S, dead_lettered=True)
    clock.advance(31 * DAY_S)
    assert storage.prune(Kind.EVENTS) > 0
    storage.db.run(dead.replay, "t", "ann", "k")
    clock.advance(31 * DAY_S)
    assert storage.prune(Kind.EVENTS) == 0


def test_the_feed_and_workers_that_are_gone_go(storage: Storage, clock: Clock) -> None:
    storage.complete("k")
    storage.sql(
        "INSERT INTO workers (id, name, hostname, pid, queues, concurrency, state)"
        " VALUES ('w', 'w', 'h', 1, '{}', 1, 'serving')"
    )
    assert storage.prune(Kind.FEED) == storage.prune(Kind.WORKERS) == 0
    clock.advance(31 * DAY_S)
    assert storage.prune(Kind.FEED) >= 2
    assert storage.prune(Kind.WORKERS) == 1


def test_a_row_that_somebody_holds_is_left_alone(storage: Storage, clock: Clock) -> None:
    """Nobody waits for the janitor, and the janitor waits for nobody."""
    storage.complete("held")
    storage.complete("free")
    clock.advance(2 * HOUR_S)
    with storage.db.engine.begin() as other:
        other.execute(sa.text("SELECT FROM runs WHERE key = 'held' FOR UPDATE"))
        assert storage.db.run(retention.prune, Kind.RUNS, KEPT, 100) == 1
    assert storage.keys() == ["held"]


def test_a_key_that_is_taken_again_first_is_not_deleted(storage: Storage, clock: Clock) -> None:
    storage.complete("k")
    clock.advance(2 * HOUR_S)
    taking = runs.lease_taking(storage.caller, LeaseRequest(key="k", ttl=60))
    with storage.db.engine.begin() as other:
        assert on(other, runs.take(storage.caller, taking)).outcome == "acquired"
        assert storage.db.run(retention.prune, Kind.RUNS, KEPT, 100) == 0
    assert storage.db.run(retention.prune, Kind.RUNS, KEPT, 100) == 0
    assert storage.keys() == ["k"]


def test_a_key_that_is_deleted_first_is_taken_as_new(storage: Storage, clock: Clock) -> None:
    storage.complete("k")
    clock.advance(2 * HOUR_S)
    taken: list[tuple[str, int]] = []
    with storage.db.engine.begin() as other:
        assert on(other, retention.prune(Kind.RUNS, KEPT, 100)) == 1
        taker = threading.Thread(target=lambda: taken.append(storage.lease("k")))
        taker.start()
        waits = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while not storage.sql(waits):
            assert taker.is_alive()
    taker.join()
    assert len(taken) == 1


def test_the_holder_of_a_deleted_run_is_refused_like_any_other(storage: Storage, clock: Clock) -> None:
    claim = storage.complete("k")
    clock.advance(2 * HOUR_S)
    assert storage.prune(Kind.RUNS) == 1
    assert storage.db.run(claims.complete, claim, {"late": True}, HOUR_S) is Ending.LOST
    with pytest.raises(NotFound):
        storage.db.run(
            leases.complete, storage.caller, CompleteRequest(key="k", lease_id="x" * 20, result={}), HOUR_S
        )
    assert storage.db.run(runs.find_by_id, "t", claim.id) is None


@pytest.mark.parametrize("kind", [Kind.LOCKS, Kind.RUNS])
def test_takers_and_janitors_at_once_have_one_winner_each_time(
    storage: Storage, clock: Clock, kind: Kind
) -> None:
    """Deleting between two looks at a key must not let two callers win, or none."""
    take = storage.lock if kind is Kind.LOCKS else storage.outcome
    storage.finished("k")
    for _ in range(12):
        clock.advance(2 * HOUR_S)
        turns = iter(range(8))

        def one(turns: Iterator[int] = turns) -> str | None:
            if next(turns) % 2:
                storage.db.run(retention.prune, kind, KEPT, 100)
                return None
            return take("k")

        answers = storm(8, one)
        won = [answer for answer in answers if answer in ("locked", "acquired")]
        assert len(won) == 1, answers
        if kind is Kind.RUNS:
            storage.end("k")
