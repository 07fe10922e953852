"""Operations that meet at one row, in every order of their statements and commits: no order breaks a promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from support.interleaving import Call, Case, Explorer, explorer

from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.leases import CancelRequest, LeaseRequest
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.errors import LeaseConflict
from onceonly_jobs.services import claims, governance, leases, outbox, retention, runs
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.claims import Beat
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.retention import Kept, Kind
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.store.statement import Operation, Statement, autocommit, nothing, one_or_none
from onceonly_jobs.testing import Clock

LEASE_S = 15.0
WEEK_S = 604_800
WORK = JobSpec(name="work", queue="q", max_attempts=3)

Answers = list[Any]


@autocommit
def tick(seconds: float) -> Operation[None]:
    """Time that passes for whoever asks after it."""
    query = sa.text("UPDATE onceonly_clock SET moved = moved + make_interval(secs => :s)")
    yield from Statement("time passes", query, nothing, {"s": seconds})


class World:
    """A tenant whose keys and agents are new in each order."""

    def __init__(self, db: Database, caller: Caller, owner_url: str) -> None:
        self.db, self.caller = db, caller
        self._owner = sa.create_engine(owner_url, poolclass=sa.NullPool).connect()
        self._owner = self._owner.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self._owner.close()

    def sql(self, query: str, **params: Any) -> list[Any]:
        result = self._owner.execute(sa.text(query), params)
        return [tuple(row) for row in result] if result.returns_rows else []

    def fresh(self, n: int) -> str:
        """The key and agent of the n-th order; no other run is there for a relay to find."""
        self.sql("DELETE FROM runs")
        return f"k{n}"

    def taking(self, key: str, agent_id: str | None = None) -> Taking:
        metadata = None if agent_id is None else {"agent_id": agent_id}
        return runs.job_taking(self.caller, WORK, key=key, ttl_s=600, metadata=metadata)

    def take(self, key: str, agent_id: str | None = None, name: str = "take") -> Call:
        taking = self.taking(key, agent_id)
        return Call(name, runs.taking_operation(self.caller, taking), (self.caller, taking))

    def taken(self, key: str, agent_id: str | None = None) -> Taken:
        call = self.take(key, agent_id)
        return self.db.run(call.operation, *call.args)  # type: ignore[no-any-return]

    def claim(self, run: int, name: str = "claim") -> Call:
        return Call(name, claims.claim, (run, "work", LEASE_S, None))

    def claimed(self, key: str, agent_id: str | None = None) -> Claim:
        claim = self.db.run(claims.claim, self.taken(key, agent_id).run.id, "work", LEASE_S, None)
        assert claim is not None
        return claim

    def complete(self, claim: Claim, name: str = "complete") -> Call:
        return Call(name, claims.complete, (claim, {"by": name}, WEEK_S))

    def cancel(self, key: str, lease_id: str) -> Call:
        return Call("cancel", leases.cancel, (self.caller, CancelRequest(key=key, lease_id=lease_id), WEEK_S))

    def disable(self, agent_id: str) -> Call:
        return Call("disable", governance.disable, (self.caller, agent_id, SwitchRequest(), WEEK_S))

    def policy(self, agent_id: str, **fields: Any) -> Call:
        return Call("policy", governance.set_policy, (self.caller, agent_id, PolicyRequest(**fields)))

    def lease_id(self, key: str) -> str:
        [(lease_id,)] = self.sql("SELECT lease_id FROM runs WHERE key = :key", key=key)
        return str(lease_id)

    def row(self, key: str) -> Any:
        [row] = self.sql(
            "SELECT state, attempt, fencing_token, result ->> 'by' FROM runs WHERE key = :key", key=key
        )
        return row

    def state(self, key: str) -> str:
        return str(self.row(key)[0])

    def conclusions(self, key: str) -> list[str]:
        """What the audit trail says that became of each decision on the key."""
        query = """SELECT o.outcome FROM audit_decisions d JOIN audit_outcomes o ON o.decision_id = d.id
            WHERE d.run_key = :key ORDER BY d.id"""
        return [outcome for (outcome,) in self.sql(query, key=key)]

    def decisions(self, key: str) -> list[str]:
        query = "SELECT decision FROM audit_decisions WHERE run_key = :key ORDER BY id"
        return [decision for (decision,) in self.sql(query, key=key)]

    def charged(self) -> int:
        [(charged,)] = self.sql("SELECT coalesce(sum(charged_total), 0) FROM usage_counters")
        return int(charged)


@pytest.fixture
def world(db: Database, caller: Caller, owner_url: str, clock: Clock) -> Iterator[World]:
    world = World(db, caller, owner_url)
    yield world
    world.close()


@pytest.fixture
def explore(owner_url: str) -> Iterator[Explorer]:
    with explorer(owner_url, 3) as ready:
        yield ready


def two_takings(world: World, n: int) -> Case:
    key, charged = world.fresh(n), world.charged()

    def check(answers: Answers) -> None:
        assert sorted(taken.outcome for taken in answers) == ["acquired", "held"]
        assert answers[0].run.lease_id == answers[1].run.lease_id == world.lease_id(key)
        assert world.charged() == charged + 1
        assert world.decisions(key) == ["executed"]

    return [world.take(key, name="one"), world.take(key, name="other")], check


def taking_and_lease(world: World, n: int) -> Case:
    key, charged = world.fresh(n), world.charged()
    leasing = runs.lease_taking(world.caller, LeaseRequest(key=key, ttl=60))

    def check(answers: Answers) -> None:
        assert sorted(taken.outcome for taken in answers) == ["acquired", "held"]
        assert world.charged() == charged + 1

    return [world.take(key), Call("lease", runs.take, (world.caller, leasing))], check


def two_claims_and_cancel(world: World, n: int) -> Case:
    key = world.fresh(n)
    taken = world.taken(key)

    def check(answers: Answers) -> None:
        assert len([claim for claim in answers[:2] if claim is not None]) <= 1
        assert world.state(key) == "cancelled"
        assert world.conclusions(key) == ["cancelled"]

    run = taken.run.id
    return [world.claim(run, "one"), world.claim(run, "other"), world.cancel(key, taken.run.lease_id)], check


def claim_reap_and_zombie(world: World, n: int) -> Case:
    """The claim has run out; its worker does not know, and another has a message."""
    key = world.fresh(n)
    zombie = world.claimed(key)
    world.sql("UPDATE runs SET lease_until_at = onceonly_now()")

    def check(answers: Answers) -> None:
        reaped, claim, ending = answers
        assert [run.key for run in reaped] == [key]
        assert ending is Ending.LOST
        state, attempt, token, result = world.row(key)
        assert (state, attempt) == (("queued", 1) if claim is None else ("in_progress", 2))
        assert claim is None or token == claim.fencing_token > zombie.fencing_token
        assert result is None
        assert world.conclusions(key) == []

    reap = Call("reap", outbox.reap, (10, WEEK_S))
    return [reap, world.claim(zombie.id), world.complete(zombie)], check


def reap_and_complete_as_time_passes(world: World, n: int) -> Case:
    key = world.fresh(n)
    claim = world.claimed(key)

    def check(answers: Answers) -> None:
        reaped, ending, _ = answers
        assert not (reaped and ending is Ending.STORED)
        assert world.state(key) == (
            "completed" if ending is Ending.STORED else "queued" if reaped else "in_progress"
        )
        assert world.conclusions(key) == (["completed"] if ending is Ending.STORED else [])

    reap = Call("reap", outbox.reap, (10, WEEK_S))
    return [reap, world.complete(claim), Call("clock", tick, (LEASE_S + 1,))], check


def complete_and_cancel(world: World, n: int) -> Case:
    key = world.fresh(n)
    claim = world.claimed(key)

    def check(answers: Answers) -> None:
        ending, cancelled = answers
        assert ending in (Ending.STORED, Ending.CANCELLED)
        assert isinstance(cancelled, LeaseConflict) == (ending is Ending.STORED)
        state, *_, result = world.row(key)
        assert (state, result) == (
            ("completed", "complete") if ending is Ending.STORED else ("cancelled", None)
        )
        assert world.conclusions(key) == [state]

    return [world.complete(claim), world.cancel(key, world.lease_id(key))], check


def complete_and_complete_again(world: World, n: int) -> Case:
    """A worker that got no answer asks again, while its last question is still under way."""
    key = world.fresh(n)
    claim = world.claimed(key)

    def check(answers: Answers) -> None:
        assert answers == [Ending.STORED, Ending.STORED]
        assert world.state(key) == "completed"
        assert world.conclusions(key) == ["completed"]

    return [world.complete(claim, "first"), world.complete(claim, "again")], check


def complete_and_fail(world: World, n: int) -> Case:
    """The worker's two minds: whichever is first is what everybody is told."""
    key = world.fresh(n)
    claim = world.claimed(key)

    def check(answers: Answers) -> None:
        completed, failed = answers
        assert {completed, failed} == {Ending.STORED, Ending.LOST}
        state, *_, result = world.row(key)
        assert (state, result) == (
            ("completed", "complete") if completed is Ending.STORED else ("failed", None)
        )
        assert world.conclusions(key) == [state]

    fail = Call("fail", claims.fail, (claim, "x", "x", WEEK_S))
    return [world.complete(claim), fail], check


def heartbeat_and_kill_switch(world: World, n: int) -> Case:
    agent_id = key = world.fresh(n)
    claim = world.claimed(key, agent_id)

    def check(answers: Answers) -> None:
        beat, (_, stopped) = answers
        assert isinstance(beat, Beat) or beat is Ending.LOST
        assert (stopped.queued, stopped.running) == (0, 1)
        assert world.state(key) == "failed"
        assert world.conclusions(key) == ["failed"]

    return [Call("heartbeat", claims.heartbeat, (claim, LEASE_S)), world.disable(agent_id)], check


def claim_and_kill_switch(world: World, n: int) -> Case:
    """What is claimed after the switch was thrown is what its answer said could not happen."""
    agent_id = key = world.fresh(n)
    run = world.taken(key, agent_id).run.id

    def check(answers: Answers) -> None:
        assert world.state(key) == "failed"
        assert world.conclusions(key) == ["failed"]

    return [world.claim(run), world.disable(agent_id)], check


def taking_and_kill_switch(world: World, n: int) -> Case:
    agent_id = key = world.fresh(n)
    world.db.run(world.policy(agent_id).operation, *world.policy(agent_id, max_actions_per_hour=9).args)

    def check(answers: Answers) -> None:
        assert world.state(key) == "failed"
        taken, (_, _) = answers
        assert taken.outcome in ("acquired", "refused")

    return [world.take(key, agent_id), world.disable(agent_id)], check


def policy_and_claim(world: World, n: int) -> Case:
    agent_id = key = world.fresh(n)
    run = world.taken(key, agent_id).run.id

    def check(answers: Answers) -> None:
        claim, _ = answers
        assert world.state(key) == ("failed" if claim is None else "in_progress")
        assert world.conclusions(key) == (["failed"] if claim is None else [])

    return [world.claim(run), world.policy(agent_id, blocked_tools=["work"])], check


def two_takings_at_the_limit(world: World, n: int) -> Case:
    agent_id = world.fresh(n)
    limited = world.policy(agent_id, max_actions_per_hour=1)
    world.db.run(limited.operation, *limited.args)
    keys = [f"{agent_id}/{name}" for name in ("one", "other")]

    def check(answers: Answers) -> None:
        assert sorted(taken.outcome for taken in answers) == ["acquired", "refused"]
        query = "SELECT hour_actions, day_calls ->> 'work' FROM agents WHERE agent_id = :agent_id"
        assert world.sql(query, agent_id=agent_id) == [(1, "1")]
        assert sorted(world.decisions(keys[0]) + world.decisions(keys[1])) == ["blocked", "executed"]

    return [world.take(key, agent_id, name=key) for key in keys], check


def two_relays(world: World, n: int) -> Case:
    keys = [f"{world.fresh(n)}/{number}" for number in range(2)]
    for key in keys:
        world.taken(key)

    def check(answers: Answers) -> None:
        taken = [due.key for batch in answers for due in batch]
        assert len(taken) == len(set(taken)) > 0
        rest = world.sql("SELECT key FROM runs WHERE publish_at <= onceonly_now()")
        assert {*taken, *(key for (key,) in rest)} == set(keys)

    take = [Call(name, outbox.take_due, (1, 2.0, [])) for name in ("one", "other")]
    return take, check


def taking_and_deletion(world: World, n: int) -> Case:
    key = world.fresh(n)
    claim = world.claimed(key)
    world.db.run(claims.complete, claim, {}, WEEK_S)
    world.sql("UPDATE runs SET retain_until_at = onceonly_now() - interval '1 day'")
    prune = Call("prune", retention.prune, (Kind.RUNS, Kept(actions_s=WEEK_S, events_s=WEEK_S), 10))

    def check(answers: Answers) -> None:
        taken, _ = answers
        assert taken.outcome == "acquired"
        assert world.sql("SELECT state, version > 0, result FROM runs WHERE key = :key", key=key) == [
            ("queued", True, None)
        ]
        again = world.db.run(claims.claim, taken.run.id, "work", LEASE_S, None)
        assert again is not None
        assert again.fencing_token > claim.fencing_token

    return [world.take(key), prune], check


CASES = [
    two_takings,
    taking_and_lease,
    two_claims_and_cancel,
    claim_reap_and_zombie,
    reap_and_complete_as_time_passes,
    complete_and_cancel,
    complete_and_complete_again,
    complete_and_fail,
    heartbeat_and_kill_switch,
    claim_and_kill_switch,
    taking_and_kill_switch,
    policy_and_claim,
    two_takings_at_the_limit,
    two_relays,
    taking_and_deletion,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_order_breaks_a_promise(
    world: World, explore: Explorer, case: Callable[[World, int], Case]
) -> None:
    explored = explore.every_order(lambda n: case(world, n))
    print(f"{case.__name__}: {explored}")
    assert explored.orders >= 4


def check_then_act(key: str) -> Operation[bool]:
    """How a key must not be taken."""
    find = sa.text("SELECT key FROM locks WHERE tenant_id = 't' AND key = :key")
    found = yield from Statement("check", find, one_or_none(lambda row: row["key"]), {"key": key})
    if found is not None:
        return False
    insert = sa.text("""INSERT INTO locks (tenant_id, key, ttl_s, locked_until_at, first_seen_at)
        VALUES ('t', :key, 60, onceonly_now(), onceonly_now()) ON CONFLICT DO NOTHING""")
    yield from Statement("act", insert, nothing, {"key": key})
    return True


def test_the_explorer_finds_a_check_that_is_not_the_act(world: World, explore: Explorer) -> None:
    """An explorer that finds nothing proves nothing, unless it finds what is there."""

    def racing(n: int) -> Case:
        key = f"k{n}"

        def check(answers: Answers) -> None:
            assert answers.count(True) == 1

        return [Call("one", check_then_act, (key,)), Call("other", check_then_act, (key,))], check

    with pytest.raises(AssertionError, match="in this order:") as found:
        explore.every_order(racing)
    print(found.value)


def test_a_session_that_waits_for_a_lock_lets_the_others_go_on(world: World, explore: Explorer) -> None:
    explored = explore.every_order(lambda n: two_takings(world, n))
    assert explored.waits > 0


def deadlocking(*keys: str) -> Operation[str]:
    for key in keys:
        query = sa.text("UPDATE runs SET version = version + 1 WHERE key = :key")
        yield from Statement(f"lock {key}", query, nothing, {"key": key})
    return "done"


def test_two_that_wait_for_each_other_are_told_apart_by_postgres(world: World, explore: Explorer) -> None:
    def crossing(n: int) -> Case:
        world.fresh(n)
        for key in ("a", "b"):
            world.taken(key)

        def check(answers: Answers) -> None:
            assert answers == ["done", "done"]
            assert world.sql("SELECT version FROM runs") == [(3,), (3,)]

        return [Call("one", deadlocking, ("a", "b")), Call("other", deadlocking, ("b", "a"))], check

    assert explore.every_order(crossing).restarts > 0
