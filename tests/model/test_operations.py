"""Random programs of our operations over the real SQL, beside a model of a few lines: after each step they agree.

ONCEONLY_TEST_PROGRAMS makes it more than a few programs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from onceonly_jobs.contracts.leases import (
    CancelRequest,
    CompleteRequest,
    ExtendRequest,
    FailRequest,
    LeaseRequest,
)
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.errors import Refusal
from onceonly_jobs.services import claims, dead, governance, leases, outbox, retention, runs
from onceonly_jobs.services.claims import Ending, Failure
from onceonly_jobs.store.claims import Beat
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.retention import IN_HAND_S, Kept, Kind
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock
from tests.conftest import make_account

PROGRAMS = int(os.environ.get("ONCEONLY_TEST_PROGRAMS", "8"))
STEPS = int(os.environ.get("ONCEONLY_TEST_STEPS", "30"))
KEYS = ("a", "b")
AGENT = "bot"
LEASE_S, TTL_S, LIMIT_S, RETENTION_S = 15.0, 60, 100, 400
WORK = JobSpec(name="work", queue="q", max_attempts=2, max_crashes=2)
COST, CAP = 300_000, 1_000_000
"""Of a governed run, and of a day, in micro-dollars."""

pytestmark = pytest.mark.timeout(120 + PROGRAMS * 10)

FROZEN = """CREATE OR REPLACE FUNCTION onceonly_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT timestamptz '2026-03-01 00:00Z' + moved FROM onceonly_clock $$"""
"""No time passes but what a program lets pass."""

_numbers = itertools.count(1)


@dataclass
class Model:
    """What a key should be like."""

    owner: str = "server"
    state: str | None = None
    """None: its row is gone, or never was."""
    version: int = 0
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    handle: str = ""
    claim: str | None = None
    lease_until: float | None = None
    deadline: float | None = None
    retain_until: float | None = None
    result: Any = None
    dead: bool = False
    tokens: list[int] = field(default_factory=list)

    def free(self, now: float) -> bool:
        if self.state is None:
            return True
        if self.state in ("completed", "failed"):
            return now >= (self.retain_until or 0)
        expired = self.lease_until is None or now >= self.lease_until
        if self.state == "cancelled":
            return self.owner == "caller" or expired
        return self.state == "in_progress" and self.owner == "caller" and expired

    def deletable(self, now: float) -> bool:
        over = self.retain_until is not None and now >= self.retain_until + IN_HAND_S
        working = self.state == "cancelled" and self.owner == "server" and now < (self.lease_until or 0)
        return over and not working

    def current(self, lease_id: str, now: float) -> bool:
        return self.state == "in_progress" and self.claim == lease_id and now < (self.lease_until or 0)

    def take(self, owner: str, handle: str, now: float) -> None:
        fresh = self.state in (None, "completed", "failed")
        tokens = self.tokens
        self.__init__(version=1 if fresh else self.version + 1, tokens=tokens)  # type: ignore[misc]
        self.owner, self.handle = owner, handle
        self.state = "queued" if owner == "server" else "in_progress"
        self.lease_until = None if owner == "server" else now + TTL_S

    def end(self, state: str, now: float) -> None:
        self.state, self.version = state, self.version + 1
        self.retain_until, self.lease_until = now + RETENTION_S, None

    def requeue(self) -> None:
        self.state, self.version, self.lease_until = "queued", self.version + 1, None


class Operations(RuleBasedStateMachine):
    """A tenant of its own for each program."""

    db: Database
    clock: Clock
    owner: sa.Engine

    def __init__(self) -> None:
        super().__init__()
        with self.owner.begin() as connection:
            connection.exec_driver_sql("DELETE FROM runs")
        self.tenant_id = f"t{next(_numbers)}"
        self.caller = make_account(self.db, self.tenant_id).caller
        limits = PolicyRequest(max_spend_usd_per_day=CAP / 1e6)
        self.db.run(governance.set_policy, self.caller, AGENT, limits)
        self.now = 0.0
        self.keys = {key: Model() for key in KEYS}
        self.claims: list[Claim] = []
        self.handles: list[tuple[str, str]] = []
        self.takings = 0

    def rows(self, query: str) -> list[Any]:
        with self.db.engine.connect() as connection:
            return list(connection.execute(sa.text(query), {"t": self.tenant_id}).mappings())

    # Taking

    @rule(key=st.sampled_from(KEYS), governed=st.booleans())
    def run(self, key: str, governed: bool) -> None:
        metadata = {"agent_id": AGENT, "spend_usd": COST / 1e6} if governed else None
        taking = runs.job_taking(
            self.caller, WORK, key=key, ttl_s=LIMIT_S, metadata=metadata, retention_s=RETENTION_S
        )
        self._take(key, "server", taking)

    @rule(key=st.sampled_from(KEYS))
    def lease(self, key: str) -> None:
        self._take(key, "caller", runs.lease_taking(self.caller, LeaseRequest(key=key, ttl=TTL_S)))

    def _take(self, key: str, owner: str, taking: Any) -> None:
        model = self.keys[key]
        taken = self.db.run(runs.taking_operation(self.caller, taking), self.caller, taking)
        assert isinstance(taken, Taken)
        assert (taken.outcome == "held") == (not model.free(self.now))
        if taken.outcome == "held":
            assert taken.run.lease_id == model.handle
            return
        model.take(owner, taken.run.lease_id, self.now)
        self.handles.append((key, taken.run.lease_id))
        if owner == "caller":
            self._granted(model, taken.run.fencing_token)
        if taken.outcome == "refused":
            model.end("failed", self.now)
            model.version -= 1
        else:
            self.takings += 1

    def _granted(self, model: Model, token: int) -> None:
        assert token > max(model.tokens, default=0), "tokens grow, also over deletions"
        model.tokens.append(token)

    # The caller

    def _asked(
        self, data: st.DataObject, ask: Callable[[str, str], tuple[Any, ...]]
    ) -> tuple[Model, str, Any]:
        key, handle = data.draw(st.sampled_from(self.handles))
        operation, *args = ask(key, handle)
        try:
            return self.keys[key], handle, self.db.run(operation, self.caller, *args)
        except Refusal as refusal:
            return self.keys[key], handle, refusal

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        model, handle, answer = self._asked(
            data, lambda key, h: (leases.extend, ExtendRequest(key=key, lease_id=h, ttl=TTL_S))
        )
        mine = model.handle == handle and model.state in ("queued", "in_progress")
        assert isinstance(answer, Refusal) == (not mine)
        if mine:
            model.version += 1
            if model.owner == "caller":
                model.lease_until = self.now + TTL_S
            elif model.state == "in_progress":
                model.deadline = self.now + TTL_S

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        model, handle, answer = self._asked(
            data, lambda key, h: (leases.cancel, CancelRequest(key=key, lease_id=h), RETENTION_S)
        )
        mine = model.handle == handle
        if mine and model.state in ("queued", "in_progress"):
            kept = model.lease_until if model.owner == "server" and model.state == "in_progress" else None
            model.end("cancelled", self.now)
            model.lease_until = kept
            assert not isinstance(answer, Refusal)
        elif not (mine and model.state == "cancelled"):
            assert isinstance(answer, Refusal)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), fails=st.booleans(), n=st.integers(0, 9))
    def end_lease(self, data: st.DataObject, fails: bool, n: int) -> None:
        def ask(key: str, handle: str) -> tuple[Any, ...]:
            if fails:
                return leases.fail, FailRequest(key=key, lease_id=handle, error_code="x"), RETENTION_S
            return leases.complete, CompleteRequest(key=key, lease_id=handle, result={"n": n}), RETENTION_S

        model, handle, answer = self._asked(data, ask)
        wanted = "failed" if fails else "completed"
        mine = model.owner == "caller" and model.handle == handle
        if mine and model.state == "in_progress":
            model.end(wanted, self.now)
            model.result = None if fails else {"n": n}
            assert not isinstance(answer, Refusal)
        elif not (mine and model.state == wanted):
            assert isinstance(answer, Refusal)

    # The workers

    @rule(key=st.sampled_from(KEYS))
    def claim(self, key: str) -> None:
        model = self.keys[key]
        rows = self.rows(f"SELECT id FROM runs WHERE tenant_id = :t AND key = '{key}'")
        if not rows:
            return
        claim = self.db.run(claims.claim, rows[0]["id"], "work", LEASE_S, None)
        assert (claim is not None) == (model.state == "queued")
        if claim is None:
            return
        self._granted(model, claim.fencing_token)
        model.state, model.version, model.attempt = "in_progress", model.version + 1, model.attempt + 1
        model.claim, model.lease_until = claim.lease_id, self.now + LEASE_S
        model.deadline = self.now + LIMIT_S
        self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        model = self.keys[claim.key]
        beat = self.db.run(claims.heartbeat, claim, LEASE_S)
        assert isinstance(beat, Beat) == model.current(claim.lease_id, self.now)
        if isinstance(beat, Beat):
            model.lease_until = self.now + LEASE_S

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(), how=st.sampled_from(["complete", "fail", "retry", "hand_back"]), n=st.integers(0, 9)
    )
    def end_claim(self, data: st.DataObject, how: str, n: int) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        model = self.keys[claim.key]
        current = model.current(claim.lease_id, self.now)
        overdue = how == "complete" and self.now >= (model.deadline or 0)
        ending = self._end(claim, how, n)
        if not current or overdue:
            assert ending is not Ending.STORED or model.claim == claim.lease_id
            if ending is Ending.CANCELLED:
                model.lease_until = self.now
            return
        assert ending is Ending.STORED
        if how == "complete":
            model.end("completed", self.now)
            model.result = {"n": n}
        elif how == "fail":
            model.end("failed", self.now)
            model.dead, model.failures = True, model.failures + 1
        else:
            model.requeue()
            model.failures += how == "retry"

    def _end(self, claim: Claim, how: str, n: int) -> Ending:
        if how == "complete":
            return self.db.run(claims.complete, claim, {"n": n}, RETENTION_S)
        if how == "fail":
            failure = Failure(error_code="x", dead_lettered=True)
            return self.db.run(claims.end_as_failed, claim, failure, RETENTION_S)
        if how == "retry":
            return self.db.run(claims.retry, claim, 0, "x", "x")
        return self.db.run(claims.hand_back, claim, "x")

    # What comes by itself, and the operator

    @rule(seconds=st.sampled_from([1, 14, 15, 16, 60, 400, 500]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.now += seconds

    @rule()
    def reap(self) -> None:
        reaped = {run.key for run in self.db.run(outbox.reap, 100, RETENTION_S)}
        for key, model in self.keys.items():
            expired = (
                model.state == "in_progress"
                and model.owner == "server"
                and self.now >= (model.lease_until or 0)
            )
            assert (key in reaped) == expired
            if expired:
                model.crashes += 1
                if model.crashes < WORK.max_crashes:
                    model.requeue()
                else:
                    model.end("failed", self.now)
                    model.dead = True

    @rule()
    def prune(self) -> None:
        self.db.run(retention.prune, Kind.RUNS, Kept(actions_s=RETENTION_S, events_s=RETENTION_S), 100)
        left = {row["key"] for row in self.rows("SELECT key FROM runs WHERE tenant_id = :t")}
        for key, model in self.keys.items():
            if model.state is not None and key not in left:
                assert model.deletable(self.now), "only what is over is deleted"
                self.keys[key] = Model(tokens=model.tokens)

    @rule(key=st.sampled_from(KEYS))
    def replay(self, key: str) -> None:
        model = self.keys[key]
        may = model.dead and model.state == "failed" and self.now < (model.retain_until or 0)
        try:
            replayed = self.db.run(dead.replay, self.tenant_id, "op", key)
        except Refusal:
            assert not may
            return
        assert may == (replayed.due is not None)
        if may:
            model.requeue()
            model.failures = model.crashes = 0
            model.dead, model.retain_until = False, None

    # What must hold

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        rows = self.rows("SELECT * FROM runs WHERE tenant_id = :t ORDER BY key")
        stored = {
            row["key"]: (
                row["state"], row["version"], row["attempt"], row["failures"], row["crashes"], row["result"],
                row["lease_id"], row["dead_lettered"],
            )
            for row in rows
        }  # fmt: skip
        assert stored == {
            key: (m.state, m.version, m.attempt, m.failures, m.crashes, m.result, m.handle, m.dead)
            for key, m in self.keys.items()
            if m.state is not None
        }

    @invariant()
    def each_taking_is_charged_once(self) -> None:
        [row] = self.rows(
            "SELECT coalesce(sum(charged_total), 0) AS n, coalesce(sum(usage), 0) AS u "
            "FROM usage_counters WHERE tenant_id = :t"
        )
        assert (row["n"], row["u"]) == (self.takings, self.takings)

    @invariant()
    def the_budget_is_what_the_audit_trail_adds_up_to(self) -> None:
        [agent] = self.rows("SELECT day_spend_micro_usd AS spend FROM agents WHERE tenant_id = :t")
        assert 0 <= agent["spend"] <= CAP
        [booked] = (
            self.rows("""SELECT coalesce(sum(coalesce(o.spend_micro_usd, d.spend_micro_usd)), 0) AS spend
            FROM audit_decisions d LEFT JOIN audit_outcomes o ON o.decision_id = d.id
            WHERE d.tenant_id = :t AND d.allowed AND d.agent_id IS NOT NULL
                AND d.at >= (SELECT day_on FROM agents a WHERE a.tenant_id = :t)::timestamp AT TIME ZONE 'UTC'""")
        )
        assert agent["spend"] == booked["spend"]


def test_random_programs_agree_with_the_model(db: Database, clock: Clock, owner_url: str) -> None:
    owner = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with owner.begin() as connection:
        connection.exec_driver_sql(FROZEN)
    machine = type("Program", (Operations,), {"db": db, "clock": clock, "owner": owner})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=PROGRAMS,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=PROGRAMS == 12,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        ),
    )
