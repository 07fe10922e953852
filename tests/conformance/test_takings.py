"""Taking keys: of any number of callers, one wins; each statement's promise on a real Postgres, sync and async."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from support.storms import storm

from onceonly_jobs.contracts.leases import (
    CancelRequest,
    CompleteRequest,
    ExtendRequest,
    FailRequest,
    LeaseRequest,
)
from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.domain.plans import Kind, Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import FingerprintMismatch, LeaseConflict, NotFound, PlanLimitReached
from onceonly_jobs.services import account, leases, locks, runs
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.store import usage
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.statement import Operation
from onceonly_jobs.testing import Clock
from tests.conftest import make_account

ECHO = JobSpec(name="echo", queue="q")
WEEK_S = 604_800


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, db: Database) -> Callable[..., Any]:
    """Runs an operation through either driver."""
    if request.param == "sync":
        return db.run

    def through_the_loop(*question: Any) -> Any:
        async def once() -> Any:
            try:
                return await db.arun(*question)
            finally:
                await db.aclose()

        return asyncio.run(once())

    return through_the_loop


def lock_request(key: str = "k", ttl: int | None = 60, **more: Any) -> CheckLockRequest:
    return CheckLockRequest(key=key, ttl=ttl, **more)


def lease_call(caller: Caller, key: str = "k", **more: Any) -> tuple[Any, ...]:
    return runs.take, caller, runs.lease_taking(caller, LeaseRequest(key=key, **more))


def run_call(caller: Caller, key: str = "k") -> tuple[Any, ...]:
    return runs.take, caller, runs.job_taking(caller, ECHO, key=key, ttl_s=60, metadata=None)


def test_first_is_locked_and_second_is_told_when(ask: Any, caller: Caller) -> None:
    first = ask(locks.check, caller, lock_request(), None)
    second = ask(locks.check, caller, lock_request(ttl=999), None)
    assert (first.status, second.status) == ("locked", "duplicate")
    assert second.first_seen_at == first.first_seen_at
    assert second.ttl_s == 60


def test_a_duplicate_neither_refreshes_nor_shortens_the_lock(ask: Any, caller: Caller, clock: Clock) -> None:
    ask(locks.check, caller, lock_request(ttl=10), None)
    clock.advance(9)
    assert ask(locks.check, caller, lock_request(ttl=10), None).status == "duplicate"
    clock.advance(1.5)
    assert ask(locks.check, caller, lock_request(ttl=10), None).status == "locked"


@pytest.mark.parametrize("expired", [False, True])
def test_of_many_concurrent_lock_calls_exactly_one_wins(
    db: Database, caller: Caller, clock: Clock, expired: bool
) -> None:
    if expired:
        db.run(locks.check, caller, lock_request(ttl=10), None)
        clock.advance(11)
    answers = storm(16, lambda: db.run(locks.check, caller, lock_request(), None).status)
    assert Counter(answers) == {"locked": 1, "duplicate": 15}
    _, counters = db.run(account.month_usage, caller)
    assert counters[Kind.MAKE].requests_total == 16 + expired
    assert counters[Kind.MAKE].usage == 15


def until_somebody_waits_for_a_lock(db: Database) -> None:
    deadline = time.monotonic() + 60
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while time.monotonic() < deadline:
        with db.engine.connect() as connection:
            if connection.execute(waiting).scalar_one():
                return
    pytest.fail("nobody waits")


def test_who_loses_an_expired_lock_meanwhile_is_told_of_the_new_window(
    db: Database, caller: Caller, clock: Clock
) -> None:
    """Its snapshot still shows the old window; the statement finds nothing, counts nothing, and asks again."""
    db.run(locks.check, caller, lock_request(ttl=10), None)
    clock.advance(11)
    answers: list[Any] = []
    loser = threading.Thread(target=lambda: answers.append(db.run(locks.check, caller, lock_request(), None)))
    with db.engine.connect() as connection:
        won = on(connection, locks.check(caller, lock_request(), None))
        loser.start()
        until_somebody_waits_for_a_lock(db)
        connection.commit()
    loser.join()
    [lost] = answers
    assert (won.status, lost.status) == ("locked", "duplicate")
    assert lost.first_seen_at == won.first_seen_at
    _, counters = db.run(account.month_usage, caller)
    assert (counters[Kind.MAKE].requests_total, counters[Kind.MAKE].usage) == (3, 1)


@pytest.mark.parametrize("call", [lease_call, run_call])
def test_of_many_concurrent_takers_exactly_one_acquires(db: Database, caller: Caller, call: Any) -> None:
    answers = storm(16, lambda: db.run(*call(caller)))
    assert Counter(taken.outcome for taken in answers) == {"acquired": 1, "held": 15}
    assert len({taken.run.lease_id for taken in answers}) == 1
    _, counters = db.run(account.month_usage, caller)
    assert (counters[Kind.AI].charged_total, counters[Kind.AI].polling_total) == (1, 15)


def test_of_many_concurrent_takeovers_exactly_one_succeeds(
    db: Database, caller: Caller, clock: Clock
) -> None:
    first = db.run(*lease_call(caller, ttl=10))
    clock.advance(11)
    answers = storm(16, lambda: db.run(*lease_call(caller)))
    acquired = [taken for taken in answers if taken.outcome == "acquired"]
    assert len(acquired) == 1
    assert acquired[0].run.version == 2
    assert acquired[0].run.fencing_token > first.run.fencing_token
    assert acquired[0].run.first_seen_at == first.run.first_seen_at


@pytest.mark.parametrize("before", range(5))
def test_extending_against_takeover_leaves_exactly_one_holder(
    db: Database, caller: Caller, clock: Clock, before: int
) -> None:
    """Either the extension comes first and the takers see a live lease, or it is refused."""
    held = db.run(*lease_call(caller, ttl=10)).run
    clock.advance(11)
    calls = itertools.count()

    def extend() -> str:
        try:
            db.run(leases.extend, caller, ExtendRequest(key="k", lease_id=held.lease_id))
        except LeaseConflict:
            return "refused"
        return "extended"

    def one() -> str:
        if next(calls) == before:
            return extend()
        return str(db.run(*lease_call(caller)).outcome)

    answers = storm(5, one)
    assert answers.count("acquired") + answers.count("extended") == 1


def test_only_the_current_lease_may_complete(ask: Any, caller: Caller, clock: Clock) -> None:
    zombie = ask(*lease_call(caller, ttl=10)).run
    clock.advance(11)
    holder = ask(*lease_call(caller)).run
    with pytest.raises(LeaseConflict) as refused:
        ask(
            leases.complete,
            caller,
            CompleteRequest(key="k", lease_id=zombie.lease_id, result={"z": 1}),
            WEEK_S,
        )
    assert refused.value.detail["reason"] == "not_owner"  # type: ignore[index]
    done = ask(
        leases.complete, caller, CompleteRequest(key="k", lease_id=holder.lease_id, result={"h": 1}), WEEK_S
    )
    assert done.result == {"h": 1}


def test_an_expired_lease_that_nobody_took_may_still_complete(ask: Any, caller: Caller, clock: Clock) -> None:
    held = ask(*lease_call(caller, ttl=10)).run
    clock.advance(1000)
    done = ask(leases.complete, caller, CompleteRequest(key="k", lease_id=held.lease_id), WEEK_S)
    assert done.state == "completed"


def test_the_first_outcome_stays_whatever_is_repeated(ask: Any, caller: Caller) -> None:
    held = ask(*lease_call(caller)).run
    first = ask(
        leases.complete, caller, CompleteRequest(key="k", lease_id=held.lease_id, result={"n": 1}), WEEK_S
    )
    again = ask(
        leases.complete, caller, CompleteRequest(key="k", lease_id=held.lease_id, result={"n": 2}), WEEK_S
    )
    assert (again.result, again.version, again.done_at) == (first.result, first.version, first.done_at)
    with pytest.raises(LeaseConflict) as refused:
        ask(leases.fail, caller, FailRequest(key="k", lease_id=held.lease_id, error_code="x"), WEEK_S)
    assert refused.value.detail["reason"] == "finished"  # type: ignore[index]
    assert ask(*lease_call(caller)).run.result == {"n": 1}


def test_results_keep_the_order_of_their_keys(ask: Any, caller: Caller) -> None:
    held = ask(*lease_call(caller)).run
    ask(
        leases.complete,
        caller,
        CompleteRequest(key="k", lease_id=held.lease_id, result={"b": 1, "a": 2}),
        WEEK_S,
    )
    assert list(ask(runs.find, caller.tenant_id, "k").result) == ["b", "a"]


def test_a_cancelled_lease_is_free_at_once(ask: Any, caller: Caller) -> None:
    held = ask(*lease_call(caller)).run
    cancelled = ask(leases.cancel, caller, CancelRequest(key="k", lease_id=held.lease_id), WEEK_S)
    repeated = ask(leases.cancel, caller, CancelRequest(key="k", lease_id=held.lease_id), WEEK_S)
    assert replace(repeated, read_at=cancelled.read_at) == cancelled
    taken = ask(*lease_call(caller))
    assert (taken.outcome, taken.run.version) == ("acquired", 3)


def test_a_finished_key_answers_for_its_retention_and_is_free_after(
    ask: Any, caller: Caller, clock: Clock
) -> None:
    held = ask(*lease_call(caller)).run
    ask(leases.fail, caller, FailRequest(key="k", lease_id=held.lease_id, error_code="x"), WEEK_S)
    clock.advance(WEEK_S - 60)
    assert ask(*lease_call(caller)).run.error_code == "x"
    clock.advance(61)
    with pytest.raises(NotFound):
        ask(runs.find, caller.tenant_id, "k")
    fresh = ask(*lease_call(caller))
    assert (fresh.outcome, fresh.run.version, fresh.run.error_code) == ("acquired", 1, None)
    assert fresh.run.first_seen_at > held.first_seen_at
    assert fresh.run.fencing_token > held.fencing_token


def test_another_fingerprint_never_gets_somebody_elses_answer(ask: Any, caller: Caller, clock: Clock) -> None:
    ask(locks.check, caller, lock_request(fingerprint="a"), None)
    with pytest.raises(FingerprintMismatch):
        ask(locks.check, caller, lock_request(fingerprint="b"), None)
    assert ask(locks.check, caller, lock_request(), None).status == "duplicate"
    ask(*lease_call(caller, fingerprint="a", ttl=10))
    with pytest.raises(FingerprintMismatch):
        ask(*lease_call(caller, fingerprint="b"))
    clock.advance(11)
    with pytest.raises(FingerprintMismatch):
        ask(*lease_call(caller, fingerprint="b"))
    assert ask(*lease_call(caller, fingerprint="a")).outcome == "acquired"


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.AGENCY])
@pytest.mark.parametrize("agent_id", [None, "bot"])
def test_a_reused_key_is_counted_as_a_request_on_every_plan(
    db: Database, plan: Plan, agent_id: str | None
) -> None:
    caller = make_account(db, f"t_{plan}", plan).caller
    metadata = {"agent_id": agent_id} if agent_id else None

    def run(fingerprint: str) -> Any:
        taking = runs.job_taking(
            caller,
            JobSpec(name="echo", queue="q"),
            key="k",
            ttl_s=60,
            metadata=metadata,
            fingerprint=fingerprint,
        )
        return db.run(runs.taking_operation(caller, taking), caller, taking)

    check = locks.check_capped if plan is Plan.FREE else locks.check
    db.run(check, caller, lock_request(fingerprint="a"), None)
    run("a")
    for ask in (lambda: db.run(check, caller, lock_request(fingerprint="b"), None), lambda: run("b")):
        try:
            refusal = ask().refusal
        except FingerprintMismatch as mismatch:
            refusal = mismatch
        assert isinstance(refusal, FingerprintMismatch)
    _, counters = db.run(account.month_usage, caller)
    assert {kind: counter.requests_total for kind, counter in counters.items()} == {Kind.MAKE: 2, Kind.AI: 2}
    assert counters[Kind.AI].usage == 1


def test_a_hard_cap_is_exact_under_a_storm(db: Database) -> None:
    """Free stops at 3000 runs; the counter stands 5 below it, and 16 callers want 16 keys."""
    free = make_account(db, "free", Plan.FREE).caller
    _use_up(db, free, 2995)
    keys = iter([f"k{n}" for n in range(16)])

    def one() -> Any:
        key = next(keys)
        return db.run(runs.take_capped, free, runs.lease_taking(free, LeaseRequest(key=key)))

    answers = storm(16, one)
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert len(answers) - len(refused) == 5
    assert all(isinstance(answer.refusal, PlanLimitReached) for answer in refused)
    assert refused[0].refusal.detail["limit"] == 3000
    _, counters = db.run(account.month_usage, free)
    assert (counters[Kind.AI].charged_total, counters[Kind.AI].blocked_total) == (5, 11)


def _use_up(db: Database, caller: Caller, units: int) -> None:
    def lock_cap() -> Operation[int]:
        return (yield from usage.lock_cap(caller.tenant_id, Kind.AI))

    db.run(lock_cap)
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE usage_caps SET usage = :n"), {"n": units})
