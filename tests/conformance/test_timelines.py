"""A run's timeline tells each of its life's stories, in order and with how long everything took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.leases import CancelRequest, CompleteRequest, LeaseRequest
from onceonly_jobs.contracts.unknown import SettleRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.services import claims, governance, insights, leases, outbox, runs, unknown
from onceonly_jobs.store import claims as store
from onceonly_jobs.store import events as event_store
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.events import Event
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock

ECHO = JobSpec(name="echo", queue="q", max_attempts=2)
LEASE_S = 15.0
WEEK_S = 604_800
WAITED_S, WORKED_S = 40, 7

Story = tuple[str, str | None, int | None]
"""Type, status and whole seconds of an event."""


class Life:
    """Runs of one tenant, and the clock that they live by."""

    def __init__(self, db: Database, caller: Caller, clock: Clock) -> None:
        self.db = db
        self.caller = caller
        self.clock = clock

    def queued(self, key: str = "k", *, delay_s: float = 0, attempts: int = 2, **metadata: Any) -> Taken:
        job = replace(ECHO, max_attempts=attempts, max_crashes=attempts)
        taking = runs.job_taking(
            self.caller, job, key=key, ttl_s=600, metadata=metadata or None, delay_s=delay_s
        )
        taken = self.db.run(runs.taking_operation(self.caller, taking), self.caller, taking)
        assert isinstance(taken, Taken)
        return taken

    def claimed(self, taken: Taken, after_s: float = WAITED_S) -> Claim:
        self.clock.advance(after_s)
        claim = self.db.run(claims.claim, taken.run.id, "echo", LEASE_S, None)
        assert claim is not None
        return claim

    def worked(self, taken: Taken, after_s: float = WAITED_S) -> Claim:
        claim = self.claimed(taken, after_s)
        self.clock.advance(WORKED_S)
        return claim

    def reap(self) -> None:
        self.db.run(outbox.reap, 100, WEEK_S)

    def set_effect(self, key: str, effect: str) -> None:
        with self.db.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE runs SET effect = :effect WHERE key = :key"), {"effect": effect, "key": key}
            )

    def events(self, run_id: str = "k") -> list[Event]:
        return self.db.run(insights.timeline, self.caller, run_id, 100, 0)[1]

    def story(self, run_id: str = "k") -> list[Story]:
        return [
            (e.type, e.status, None if e.duration_ms is None else round(e.duration_ms / 1000))
            for e in self.events(run_id)
        ]


@pytest.fixture
def life(db: Database, caller: Caller, clock: Clock) -> Life:
    return Life(db, caller, clock)


QUEUED = ("run_queued", "queued", None)
STARTED = ("run_started", "started", WAITED_S)


def test_completed(life: Life) -> None:
    claim = life.worked(life.queued())
    life.db.run(claims.report_progress, claim, {"fraction": 0.5}, "half")
    life.db.run(claims.report_log, claim, "a line", {})
    life.db.run(claims.complete, claim, {}, WEEK_S)
    assert life.story() == [
        QUEUED,
        STARTED,
        ("progress", "in_progress", None),
        ("log", "in_progress", None),
        ("run_finished", "completed", WORKED_S),
    ]
    queued, *_, finished = life.events()
    assert queued.data == {"key": "k", "attempt": 0, "decision_id": claim.decision_id}
    assert finished.data is not None
    assert round(finished.data["total_ms"] / 1000) == WAITED_S + WORKED_S


def test_a_delayed_run_waits_from_when_it_was_due(life: Life) -> None:
    taken = life.queued(delay_s=100)
    life.claimed(taken, 100 + WAITED_S)
    assert life.story() == [QUEUED, STARTED]
    assert (life.events()[0].data or {})["due_in_ms"] == 100_000


def test_failed(life: Life) -> None:
    life.db.run(claims.fail, life.worked(life.queued()), "boom", None, WEEK_S)
    assert life.story() == [QUEUED, STARTED, ("run_finished", "failed", WORKED_S)]
    assert life.events()[-1].message == "boom"


def test_retried_and_then_completed(life: Life) -> None:
    taken = life.queued()
    life.db.run(claims.retry, life.worked(taken), 30, "handler_error", "try again")
    life.db.run(claims.complete, life.worked(taken, 30 + WAITED_S), {}, WEEK_S)
    assert life.story() == [
        QUEUED,
        STARTED,
        ("run_retried", "queued", WORKED_S),
        STARTED,
        ("run_finished", "completed", WORKED_S),
    ]
    retried = life.events()[2]
    assert retried.message == "try again"
    assert retried.data == {"key": "k", "attempt": 1, "error_code": "handler_error", "due_in_ms": 30_000}


def test_a_lost_worker_is_dated_by_its_last_heartbeat(life: Life) -> None:
    taken = life.queued(attempts=2)
    life.claimed(taken)
    life.clock.advance(300)
    life.reap()
    life.claimed(taken)
    life.clock.advance(300)
    life.reap()
    lost = ("lease_expired", "lost", int(LEASE_S))
    assert life.story() == [
        QUEUED,
        STARTED,
        lost,
        ("run_retried", "queued", 300),
        STARTED,
        lost,
        ("run_finished", "failed", 300),
    ]
    assert [e.message for e in life.events()][-1] == "worker_lost"


def test_cancelled_in_the_queue_and_in_mid_run(life: Life) -> None:
    for key, run in (("early", False), ("late", True)):
        taken = life.queued(key)
        if run:
            life.worked(taken)
        request = CancelRequest(key=key, lease_id=taken.run.lease_id)
        life.db.run(leases.cancel, life.caller, request, WEEK_S)
    assert life.story("early") == [QUEUED, ("run_finished", "failed", 0)]
    assert life.story("late") == [QUEUED, STARTED, ("run_finished", "failed", WORKED_S)]
    assert life.events("late")[-1].message == "cancelled"


def test_an_unknown_outcome_and_its_settlement(life: Life) -> None:
    taken = life.queued()
    claim = life.worked(taken)
    life.db.run(claims.hold_unknown, claim, "no answer", None)
    life.clock.advance(60)
    life.db.run(unknown.settle, life.caller.tenant_id, "me", SettleRequest(key="k", happened=True), WEEK_S)
    assert life.story() == [
        QUEUED,
        STARTED,
        ("outcome_unknown", "unknown", WORKED_S),
        ("run_finished", "completed", WORKED_S + 60),
        ("settled", "completed", None),
    ]


def test_a_lost_call_that_cannot_be_repeated(life: Life) -> None:
    life.claimed(life.queued())
    life.set_effect("k", "irreversible")
    life.clock.advance(300)
    life.reap()
    assert life.story()[2:] == [
        ("lease_expired", "lost", int(LEASE_S)),
        ("outcome_unknown", "unknown", 300),
    ]


def test_the_kill_switch(life: Life) -> None:
    life.worked(life.queued(agent_id="bot"))
    held = life.queued("held", agent_id="bot")
    life.claimed(held, 0)
    life.set_effect("held", "irreversible")
    life.db.run(governance.disable, life.caller, "bot", SwitchRequest(), WEEK_S)
    assert life.story() == [QUEUED, STARTED, ("run_finished", "failed", WORKED_S)]
    assert life.story("held")[-1] == ("outcome_unknown", "unknown", 0)


def test_refused_at_submission(life: Life) -> None:
    life.db.run(governance.disable, life.caller, "bot", SwitchRequest(), WEEK_S)
    life.queued(agent_id="bot")
    assert life.story() == [("run_finished", "failed", None)]
    assert life.events()[0].message == "agent_disabled"


def test_a_callers_own_lease(life: Life) -> None:
    request = LeaseRequest(key="k", ttl=60)
    taken = life.db.run(runs.take, life.caller, runs.lease_taking(life.caller, request))
    assert isinstance(taken, Taken)
    life.clock.advance(WORKED_S)
    done = CompleteRequest(key="k", lease_id=taken.run.lease_id)
    life.db.run(leases.complete, life.caller, done, WEEK_S)
    assert life.story() == [("run_started", "started", None), ("run_finished", "completed", WORKED_S)]


def test_runs_of_one_timeline_are_taken_back_together_whatever_becomes_of_each(life: Life) -> None:
    """Several events of one timeline in one statement: an upsert may touch its head only once."""
    for key, attempts in (("a", 2), ("b", 1), ("c", 2)):
        life.claimed(life.queued(key, attempts=attempts, run_id="shared"), 0)
    life.set_effect("c", "irreversible")
    life.clock.advance(300)
    life.reap()
    last = [event.type for event in life.events("shared")][-6:]
    assert last[:3] == ["lease_expired"] * 3
    assert sorted(last[3:]) == ["outcome_unknown", "run_finished", "run_retried"]
    assert life.db.run(insights.timeline, life.caller, "shared", 1, 0)[0] == 12


def _blocked(db: Database, until: Callable[[int], bool]) -> None:
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    end = time.monotonic() + 60
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not until(int(connection.execute(waiting).scalar_one())):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_ids_of_a_timeline_grow_in_the_order_of_commits(life: Life) -> None:
    """Or whoever goes on from the last id that he has seen would miss what was written meanwhile."""
    tenant_id = life.caller.tenant_id

    def append(type_: str) -> Any:
        return (yield from event_store.append(tenant_id, "r", type_))

    def note(claim: Claim) -> Any:
        return (yield from store.note(claim, "log", {}, message="x"))

    claim = life.claimed(life.queued(run_id="r"), 0)
    with life.db.engine.begin() as connection:
        on(connection, append("first"))
        writers = [
            threading.Thread(target=life.db.run, args=(append, "second")),
            threading.Thread(target=life.db.run, args=(note, claim)),
        ]
        for writer in writers:
            writer.start()
        _blocked(life.db, lambda count: count == len(writers))
        on(connection, append("third"))
    for writer in writers:
        writer.join()
    by_id = [event.type for event in sorted(life.events("r"), key=lambda event: event.id)]
    assert by_id[2:4] == ["first", "third"]
