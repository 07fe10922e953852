"""Several locks or runs of one statement: each as if it had been asked for by itself, in some order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.policies import policies

from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.domain.budgets import AgentModel
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import account, calls, claims, governance, locks, runs
from onceonly_jobs.services.calls import FUNCTION, Wanted
from onceonly_jobs.store import agents
from onceonly_jobs.store import runs as store_runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.testing import Clock
from tests.conftest import make_account

AGENTS = ("bot", "bat", "bit")
WAITING = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"


def check(caller: Caller, key: str, vouched: bool = True, **fields: Any) -> Any:
    request = CheckLockRequest(key=key, ttl=fields.pop("ttl", 60), **fields)
    return locks.wanted(caller, request, None, vouched=vouched)


def taking(caller: Caller, key: str, job: str = "work", agent: str | None = None, **metadata: Any) -> Taking:
    named = {"agent_id": agent} if agent else {}
    spec = JobSpec(name=job, queue="q", max_attempts=2)
    return runs.job_taking(caller, spec, key=key, ttl_s=600, metadata=named | metadata, vouched=True)


def call(
    caller: Caller, n: int = 0, tool: str = "a", agent: str = "bot", spend_usd: float = 0.0
) -> calls.Asked:
    args = {"n": n}
    wanted = Wanted(agent_id=agent, tool=tool, args=args, spend_usd=spend_usd, queue="q", publish_grace_s=0)
    return calls.asked(caller, wanted)


@pytest.fixture(autouse=True)
def _known_agents(db: Database, caller: Caller) -> None:
    """Whoever asks for an agent for the first time is to be asked by itself."""
    with db.engine.begin() as connection:
        on(connection, agents.lock(*((caller.tenant_id, agent) for agent in AGENTS)))


@pytest.fixture
def functions(db: Database) -> None:
    """The tools `a` and `b`, as functions of workers."""
    for tool in ("a", "b"):
        spec = JobSpec(name=FUNCTION + tool, queue=f"queue-{tool}", effect="idempotent", time_limit_s=60)
        db.run(claims.announce, [spec])


def rows(db: Database, query: str, **params: Any) -> list[Any]:
    with db.engine.connect() as connection:
        return list(connection.execute(sa.text(query), params))


def test_each_lock_of_a_statement_has_the_answer_that_it_would_have_alone(
    db: Database, caller: Caller
) -> None:
    db.run(locks.check, caller, CheckLockRequest(key="held", ttl=600, fingerprint="a"), None)
    wanted = [
        check(caller, "new", metadata={"b": 1, "a": 2**62}),
        check(caller, "held"),
        check(caller, "other", fingerprint="x"),
        check(caller, "held2"),
    ]
    answers = db.run(locks.check_many, wanted)
    assert [answer and answer.status for answer in answers] == ["locked", "duplicate", "locked", "locked"]
    assert [answer and answer.ttl_s for answer in answers] == [60, 600, 60, 60]
    [again] = db.run(locks.check_many, [check(caller, "held", fingerprint="b")])
    assert again is not None
    assert again.status == "mismatch"
    [kept] = rows(db, "SELECT metadata::text AS metadata FROM locks WHERE key = 'new'")
    assert kept.metadata == f'{{"b":1,"a":{2**62}}}'
    [counted] = rows(db, "SELECT sum(requests_total) AS all, sum(usage) AS used FROM usage_counters")
    assert (counted.all, counted.used) == (6, 1)


def test_two_tenants_of_one_statement_have_locks_and_counters_of_their_own(
    db: Database, caller: Caller
) -> None:
    other = make_account(db, "other", Plan.AGENCY).caller
    for status in ("locked", "duplicate"):
        answers = db.run(locks.check_many, [check(caller, "k"), check(other, "k")])
        assert [answer and answer.status for answer in answers] == [status, status]
    counted = rows(db, "SELECT tenant_id, sum(requests_total) AS n FROM usage_counters GROUP BY 1")
    assert {row.tenant_id: row.n for row in counted} == {caller.tenant_id: 2, "other": 2}


CHANGES: list[Callable[[Caller], Any]] = [
    lambda caller: account.revoke_key(caller.key_id),
    lambda caller: account.set_disabled(caller.tenant_id, True),
    lambda caller: account.set_plan(caller.tenant_id, Plan.FREE),
]


@pytest.mark.parametrize("change", CHANGES, ids=["revoked", "disabled", "another plan"])
def test_a_caller_who_has_changed_since_is_not_served_and_the_others_are(
    db: Database, caller: Caller, change: Callable[[Caller], Any]
) -> None:
    other = make_account(db, "other", Plan.AGENCY).caller
    operation = change(caller)
    with db.engine.begin() as connection:
        on(connection, operation)
    [refused, locked] = db.run(locks.check_many, [check(caller, "k"), check(other, "k")])
    assert refused is None
    assert locked is not None
    assert locked.status == "locked"
    [refused, taken] = db.run(runs.take_many, [taking(caller, "r"), taking(other, "r")])
    assert refused is None
    assert taken is not None
    assert taken.outcome == "acquired"
    for agent in AGENTS[:2]:
        assert db.run(runs.take_many, [taking(caller, agent, agent=agent)]) == [None]
        assert db.run(calls.judge_many, [call(caller, agent=agent)]) == [None]
    for table in ("locks", "runs", "usage_counters", "audit_decisions", "feed_events", "timelines"):
        assert {row.tenant_id for row in rows(db, f"SELECT tenant_id FROM {table}")} <= {"other"}


def test_each_run_of_a_statement_is_taken_recorded_and_counted_like_one_alone(
    db: Database, caller: Caller
) -> None:
    [first] = db.run(runs.take_many, [taking(caller, "held", x=1)])
    assert first is not None
    batch = [taking(caller, key, run_id=run_id) for key, run_id in (("b", "t"), ("held", "t"), ("a", "t"))]
    taken = db.run(runs.take_many, batch)
    assert [one and one.outcome for one in taken] == ["acquired", "held", "acquired"]
    assert [one and one.usage for one in taken] == [2, 2, 3]
    assert [one and one.run.key for one in taken] == ["b", "held", "a"]
    ids = [one.run.id for one in taken if one]
    assert len(set(ids)) == 3
    queued = rows(db, "SELECT key, state, decision_id, lease_id, version FROM runs ORDER BY key")
    assert [(row.key, row.state, row.version) for row in queued] == [
        ("a", "queued", 1),
        ("b", "queued", 1),
        ("held", "queued", 1),
    ]
    assert {row.key: row.lease_id for row in queued}["b"] == batch[0].lease_id
    decided = {row.id: row.run_key for row in rows(db, "SELECT id, run_key FROM audit_decisions")}
    assert decided == {row.decision_id: row.key for row in queued}
    [head] = rows(db, "SELECT events_count FROM timelines WHERE run_id = 't'")
    assert head.events_count == 2


def test_runs_of_one_agent_are_let_in_together_up_to_the_limit_and_not_beyond(
    db: Database, caller: Caller
) -> None:
    db.run(governance.set_policy, caller, "bot", PolicyRequest(max_spend_usd_per_day=1.0))
    batch = [taking(caller, f"k{n}", agent="bot", spend_usd=0.3) for n in range(5)]
    taken = db.run(runs.take_many, batch)
    assert [one and one.outcome for one in taken] == ["acquired"] * 3 + [None] * 2
    assert sum(row.day_spend_micro_usd for row in rows(db, "SELECT * FROM agents")) == 900_000
    again = db.run(runs.take_many, batch[3:])
    assert [one and one.outcome for one in again] == ["refused", "refused"]
    assert [one.run.error_message for one in again if one] == ["max_spend_usd_per_day_exceeded"] * 2
    assert sum(row.hour_actions for row in rows(db, "SELECT * FROM agents")) == 3


programs = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def afresh(db: Database, caller: Caller, policy: dict[str, Any]) -> dict[str, AgentModel]:
    """Agents of this policy that have used nothing, without runs, and their models."""
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE agents SET policy = NULL, hour_at = NULL, day_on = NULL"))
        connection.execute(sa.text("DELETE FROM runs"))
        for agent in AGENTS[:2]:
            on(connection, _policy(caller.tenant_id, agent, policy))
    return {agent: AgentModel(policy=policy) for agent in AGENTS[:2]}


def agree(db: Database, models: dict[str, AgentModel]) -> None:
    """The windows of the agents are those of their models."""
    for row in rows(db, "SELECT * FROM agents WHERE hour_at IS NOT NULL"):
        model = models[row.agent_id]
        assert (row.hour_actions, row.day_spend_micro_usd) == (model.hour_actions, model.day_spend_micro_usd)
        assert Counter(row.day_calls) == model.day_calls


asked_for = st.lists(
    st.tuples(
        st.sampled_from(AGENTS[:2]), st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.03, 0.07, 0.1])
    ),
    min_size=1,
    max_size=12,
)


@programs
@given(policy=policies, batches=st.lists(asked_for, max_size=4))
def test_a_statement_decides_as_the_model_would_have_one_by_one(
    db: Database, caller: Caller, policy: dict[str, Any], batches: list[list[tuple[str, str, float]]]
) -> None:
    """In the order of their decisions."""
    models = afresh(db, caller, policy)
    number = 0
    for batch in batches:
        left = [
            (call, taking(caller, f"k{number + n}", call[1], call[0], spend_usd=call[2]))
            for n, call in enumerate(batch)
        ]
        number += len(left)
        while left:
            taken = db.run(runs.take_many, [each for _, each in left])
            assert any(taken), "each statement settles at least one"
            decided = [(call, one) for (call, _), one in zip(left, taken, strict=True) if one is not None]
            ids = {row.key: row.decision_id for row in rows(db, "SELECT key, decision_id FROM runs")}
            for (agent, tool, spend_usd), one in sorted(decided, key=lambda each: ids[each[1].run.key]):
                code = models[agent].decide(tool, spend_usd, one.run.first_seen_at)
                assert code == (one.run.error_message if one.outcome == "refused" else "ok")
            left = [each for each, one in zip(left, taken, strict=True) if one is None]
    agree(db, models)


def spending(caller: Caller) -> Any:
    yield from store_runs.take([taking(caller, "first", agent="bot", spend_usd=0.9)])


def switching_off(caller: Caller) -> Any:
    return governance.disable(caller, "bot", SwitchRequest(), 60)


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("meanwhile", "code"),
    [(spending, "max_spend_usd_per_day_exceeded"), (switching_off, "agent_disabled")],
)
@pytest.mark.parametrize("asked", ["runs", "calls"])
def test_who_has_waited_for_another_decision_sees_what_it_has_changed(
    db: Database, caller: Caller, meanwhile: Callable[[Caller], Any], code: str, asked: str
) -> None:
    """The statement's snapshot is older than the decision that it waits for."""
    db.run(governance.set_policy, caller, "bot", PolicyRequest(max_spend_usd_per_day=1.0))
    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            on(connection, meanwhile(caller))
            if asked == "runs":
                later = pool.submit(db.run, runs.take_many, [taking(caller, "k", agent="bot", spend_usd=0.3)])
            else:
                later = pool.submit(db.run, calls.judge_many, [call(caller, 1, spend_usd=0.3)])
            while not rows(db, WAITING)[0].n:
                assert not later.done()
        [answer] = later.result()
    if asked == "calls" and code != "agent_disabled":
        assert answer is None, "the decision before may have been on the same call"
        [answer] = db.run(calls.judge_many, [call(caller, 1, spend_usd=0.3)])
    assert answer is not None
    assert (answer.run.error_message if asked == "runs" else answer.code) == code


@pytest.mark.usefixtures("functions")
def test_a_repeat_that_has_waited_for_the_call_itself_is_not_refused_for_it(
    db: Database, caller: Caller
) -> None:
    """The agent's latest row shows the call, and the statement's snapshot does not show its run."""
    db.run(governance.set_policy, caller, "bot", PolicyRequest(max_calls_per_tool={"a": 1}))
    asked = [call(caller, 1), call(caller, 2)]
    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            [judged] = on(connection, calls.judge_many(asked[:1]))
            later = pool.submit(db.run, calls.judge_many, asked)
            while not rows(db, WAITING)[0].n:
                assert not later.done()
        assert judged is not None
        assert judged.code == "ok"
        assert later.result() == [None, None]
    again = db.run(calls.judge_many, asked)
    assert [one and one.code for one in again] == ["tool_idempotency", "max_calls_per_tool_exceeded"]
    assert len(rows(db, "SELECT FROM audit_decisions")) == 3


def _policy(tenant_id: str, agent: str, fields: dict[str, Any]) -> Any:
    return (yield from agents.set_policy(tenant_id, agent, fields, replaces=True, actor="x", change="x"))


def test_statements_that_meet_let_in_exactly_what_the_limit_says(db: Database, caller: Caller) -> None:
    """Eight at a time over the same three agents, and a kill switch that is a row like any other."""
    for agent in AGENTS:
        db.run(governance.set_policy, caller, agent, PolicyRequest(max_actions_per_hour=40))
    barrier = threading.Barrier(8)

    def ask(thread: int) -> Counter[str]:
        barrier.wait()
        outcomes: Counter[str] = Counter()
        for turn in range(4):
            left = [taking(caller, f"{thread}:{turn}:{n}", agent=AGENTS[(thread + n) % 3]) for n in range(12)]
            while left:
                taken: list[Taken | None] = db.run(runs.take_many, left)
                outcomes.update(one.outcome for one in taken if one)
                left = [each for each, one in zip(left, taken, strict=True) if one is None]
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        outcomes = sum(pool.map(ask, range(8)), Counter[str]())
    assert outcomes == {"acquired": 120, "refused": 264}
    assert {row.hour_actions for row in rows(db, "SELECT * FROM agents")} == {40}


@pytest.mark.usefixtures("functions")
def test_of_an_agent_that_is_not_known_yet_nothing_is_said(db: Database, caller: Caller) -> None:
    known, unknown = call(caller, 1), call(caller, 1, agent="new")
    [judged, nothing] = db.run(calls.judge_many, [known, unknown])
    assert judged is not None
    assert nothing is None
    taken = db.run(runs.take_many, [taking(caller, "k", agent="bot"), taking(caller, "l", agent="new")])
    assert [one and one.outcome for one in taken] == ["acquired", None]
    assert {row.agent_id for row in rows(db, "SELECT agent_id FROM audit_decisions")} == {"bot"}


@pytest.mark.usefixtures("functions")
def test_each_call_of_a_statement_is_judged_recorded_and_counted_like_one_alone(
    db: Database, caller: Caller
) -> None:
    db.run(governance.set_policy, caller, "bat", PolicyRequest(blocked_tools=["a"]))
    db.run(governance.disable, caller, "bit", SwitchRequest(), 60)
    [first] = db.run(calls.judge_many, [call(caller, 1)])
    assert first is not None
    batch = [
        call(caller, 2, "b"),
        call(caller, 1),
        call(caller, 1, agent="bat"),
        call(caller, 1, "nothing"),
        call(caller, 1, agent="bit"),
        call(caller, 1, "b", agent="bat", spend_usd=0.25),
    ]
    judged = [one for one in db.run(calls.judge_many, batch) if one is not None]
    codes = ["ok", "tool_idempotency", "tool_explicitly_blocked", "tool_not_found", "agent_disabled", "ok"]
    assert [one.code for one in judged] == codes
    assert [one.run and one.run.key for one in judged] == [
        batch[0].key,
        batch[1].key,
        None,
        None,
        None,
        batch[5].key,
    ]
    assert [one.queue for one in judged][::5] == ["queue-b", "queue-b"]
    assert judged[1].run_decision_id == first.decision_id != judged[1].decision_id
    kept = {row.id: row for row in rows(db, "SELECT * FROM audit_decisions")}
    assert len(kept) == 7
    for asked, one in zip(batch, judged, strict=True):
        decision = kept[one.decision_id]
        assert (
            decision.run_key,
            decision.policy_code,
            decision.agent_id,
            decision.tool,
            decision.args_hash,
        ) == (
            asked.key,
            one.code,
            asked.wanted.agent_id,
            asked.wanted.tool,
            asked.args_hash,
        )
        assert decision.spend_micro_usd == (250_000 if asked is batch[5] else 0)
    used = {row.agent_id: row for row in rows(db, "SELECT * FROM agents")}
    assert (used["bot"].hour_actions, used["bot"].day_calls) == (2, {"a": 1, "b": 1})
    assert (used["bat"].hour_actions, used["bat"].day_spend_micro_usd) == (1, 250_000)
    assert used["bit"].hour_actions in (0, None)
    [counted] = rows(db, "SELECT sum(requests_total) AS all, sum(usage) AS used FROM usage_counters")
    assert (counted.all, counted.used) == (7, 3)


@pytest.mark.usefixtures("functions")
def test_calls_that_share_a_timeline_are_all_on_it(db: Database, caller: Caller) -> None:
    db.run(governance.set_policy, caller, "bot", PolicyRequest(blocked_tools=["b"]))
    batch = [
        calls.asked(caller, replace(asked.wanted, args=asked.wanted.args | {"run_id": "shared"}))
        for asked in (call(caller, 1), call(caller, 2, "b"), call(caller, 3))
    ]
    judged = db.run(calls.judge_many, batch)
    assert [one and one.code for one in judged] == ["ok", "tool_explicitly_blocked", "ok"]
    told = rows(db, "SELECT type, status FROM run_events WHERE run_id = 'shared'")
    assert Counter((row.type, row.status) for row in told) == {
        ("tool_call", "start"): 2,
        ("tool_result", "blocked"): 1,
    }
    assert rows(db, "SELECT events_count FROM timelines WHERE run_id = 'shared'")[0].events_count == 3


tools_asked = st.lists(
    st.tuples(
        st.sampled_from(AGENTS[:2]),
        st.sampled_from(["a", "b"]),
        st.sampled_from([0.0, 0.03, 0.07, 0.1]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda each: (each[0], each[1], each[3]),
)


@programs
@given(policy=policies, batches=st.lists(tools_asked, max_size=4))
@pytest.mark.usefixtures("functions")
def test_calls_of_a_statement_are_judged_as_the_model_would_have_one_by_one(
    db: Database, caller: Caller, policy: dict[str, Any], batches: list[list[tuple[str, str, float, int]]]
) -> None:
    models = afresh(db, caller, policy)
    permitted = AgentModel(policy={name: policy[name] for name in policy if name.endswith("_tools")})
    made = set()
    for batch in batches:
        left = [(each, call(caller, each[3], each[1], each[0], each[2])) for each in batch]
        while left:
            judged = db.run(calls.judge_many, [each for _, each in left])
            assert any(judged), "each statement settles at least one"
            decided = [(each, one) for (each, _), one in zip(left, judged, strict=True) if one is not None]
            for (agent, tool, spend_usd, n), one in sorted(decided, key=lambda each: each[1].decision_id):
                if (agent, tool, n) in made and permitted.decide(tool, 0, one.at) == "ok":
                    assert one.code == "tool_idempotency"
                    continue
                used = models[agent].day_spend_micro_usd
                assert one.code == models[agent].decide(tool, spend_usd, one.at)
                assert one.code != "max_spend_usd_per_day_exceeded" or one.used == used
                if one.code == "ok":
                    made.add((agent, tool, n))
            left = [each for each, one in zip(left, judged, strict=True) if one is None]
    agree(db, models)


@pytest.mark.usefixtures("functions")
def test_whoever_makes_a_call_at_the_same_time_one_has_it(db: Database, caller: Caller) -> None:
    """Eight statements at a time over the same calls: each is made once, and everybody else attaches to it."""
    barrier = threading.Barrier(8)

    def ask(thread: int) -> Counter[str]:
        barrier.wait()
        codes: Counter[str] = Counter()
        for turn in range(3):
            left = [call(caller, turn * 100 + n, agent=AGENTS[(thread + n) % 3]) for n in range(10)]
            while left:
                judged = db.run(calls.judge_many, left)
                codes.update(str(one.code) for one in judged if one)
                left = [each for each, one in zip(left, judged, strict=True) if one is None]
        return codes

    with ThreadPoolExecutor(8) as pool:
        codes = sum(pool.map(ask, range(8)), Counter[str]())
    assert codes == {"ok": 90, "tool_idempotency": 150}
    assert rows(db, "SELECT sum(hour_actions) AS n FROM agents")[0].n == 90


LIMITED = [
    ("hour", PolicyRequest(max_actions_per_hour=1), {}),
    ("day", PolicyRequest(max_spend_usd_per_day=1.0), {"spend_usd": 1.0}),
    ("day", PolicyRequest(max_calls_per_tool={"work": 1}), {}),
]


@pytest.mark.parametrize(("window", "policy", "spend"), LIMITED)
def test_what_waits_for_an_agent_into_its_next_window_counts_in_that_one(
    db: Database, caller: Caller, clock: Clock, window: str, policy: PolicyRequest, spend: dict[str, float]
) -> None:
    """It has begun in the window before; counted there, it would forget what the new one has seen since."""
    db.run(governance.set_policy, caller, "bot", policy)
    clock.reset()
    clock.move_to(datetime(2031, 5, 1, 23, 59, 59, 500_000, tzinfo=UTC))
    asked = [taking(caller, "first", agent="bat"), taking(caller, "late", agent="bot", **spend)]
    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            on(connection, agents.lock((caller.tenant_id, "bat")))
            late = pool.submit(db.run, runs.take_many, asked)
            while not rows(db, WAITING)[0].n:
                assert not late.done()
            while not rows(db, "SELECT onceonly_now() >= '2031-05-02T00:00:00Z' AS begun")[0].begun:
                assert not late.done()
            [next_] = db.run(runs.take_many, [taking(caller, "next", agent="bot", **spend)])
            assert next_ is not None
            assert next_.outcome == "acquired"
        first, unsaid = late.result()
        assert first is not None
        assert unsaid is None
    for key in ("late", "last"):
        [answer] = db.run(runs.take_many, [taking(caller, key, agent="bot", **spend)])
        assert answer is not None
        assert answer.outcome == "refused", f"a second one in the same {window}"


def test_a_clock_that_was_set_back_keeps_nobody_waiting(db: Database, caller: Caller, clock: Clock) -> None:
    db.run(governance.set_policy, caller, "bot", PolicyRequest(max_actions_per_hour=1))
    for key in ("a", "b"):
        [taken] = db.run(runs.take_many, [taking(caller, key, agent="bot")])
        assert taken is not None
        assert taken.outcome == "acquired"
        clock.advance(-7200)
