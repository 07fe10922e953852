"""Each action of a run is decided on once and under a current claim, whoever carries the run on, and called once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from support.storms import storm
from support.tool_server import ToolServer, after, broken_off, ok, status

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.leases import CancelRequest, CompleteRequest, LeaseRequest
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.contracts.tools import ToolRequest
from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import LIMITS
from onceonly_jobs.domain.runs import Claim, Run
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.services import actions, calls, claims, governance, leases, outbox, runs, tools, unknown
from onceonly_jobs.services.calls import Answer, Wanted
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.actions import Acted
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.testing import Clock
from onceonly_jobs.worker.handlers import builtin
from onceonly_jobs.worker.lifecycle import Fate, Outcome, run_job
from onceonly_jobs.worker.runtime import Runtime

AGENT = "bot"
LEASE_S = 15.0
WEEK_S = 604_800
SECRET_KEY = "the key of this server, at least 16 long"

SEND = {"tool": "send", "args": {"to": "a"}, "spend_usd": 0.25}
PAY = {"tool": "pay", "args": {"to": "b"}, "spend_usd": 0.5}


class Acting:
    """One tenant, two tools behind a real server, and a worker in this process."""

    def __init__(self, settings: Settings, db: Database, caller: Caller, tool: ToolServer) -> None:
        settings = settings.model_copy(update={"secret_key": SECRET_KEY, "tool_allow": "loopback"})
        self.db, self.caller, self.tool = db, caller, tool
        self.runtime = Runtime.of(settings)
        self.jobs = builtin(self.runtime)
        self.register("send", "idempotent")
        self.register("pay", "irreversible")

    def register(self, name: str, effect: str, **fields: Any) -> None:
        auth = {"type": "hmac_sha256", "secret": "a-long-shared-secret"}
        request = {
            "name": name,
            "url": self.tool.url,
            "auth": auth,
            "effect": effect,
            "max_retries": 0,
            **fields,
        }
        vault = tools.vault_of(self.runtime.settings)
        self.db.run(tools.put, self.caller, ToolRequest.model_validate(request), vault)

    def policy(self, **fields: Any) -> None:
        self.db.run(governance.set_policy, self.caller, AGENT, PolicyRequest(**fields))

    def submit(self, *listed: dict[str, Any], key: str = "k", **metadata: Any) -> Taken:
        taking = runs.job_taking(
            self.caller,
            runs.actions_job("q"),
            key=key,
            ttl_s=600,
            metadata={"agent_id": AGENT, "actions": list(listed), **metadata},
        )
        taken = self.db.run(runs.taking_operation(self.caller, taking), self.caller, taking)
        assert isinstance(taken, Taken)
        return taken

    def claim(self, key: str = "k") -> Claim:
        found = self.db.run(claims.claim, self.run(key).id, runs.ACTIONS, LEASE_S, None)
        assert found is not None
        return found

    def carry_out(self, key: str = "k", job: str = runs.ACTIONS) -> Outcome:
        return run_job(self.runtime, self.jobs[job], self.run(key).id)

    def run(self, key: str = "k") -> Run:
        return self.db.run(runs.find, self.caller.tenant_id, key)

    def wanted(self, action: dict[str, Any]) -> Wanted:
        args, spend_usd = action.get("args", {}), action.get("spend_usd", 0)
        return Wanted(
            agent_id=AGENT, tool=action["tool"], args=args, spend_usd=spend_usd, queue="q", publish_grace_s=0
        )

    def decide(self, claim: Claim, action: dict[str, Any] = SEND, position: int = 0) -> Acted | None:
        return self.db.run(actions.decide, claim, self.wanted(action), position)

    def call(self, action: dict[str, Any] = SEND) -> Judged:
        """The same call, made directly."""
        return self.db.run(calls.judge, self.caller, self.wanted(action))

    def counters(self) -> tuple[int, int, dict[str, int]]:
        query = "SELECT hour_actions, day_spend_micro_usd, day_calls FROM agents"
        [(made, spend, by_tool)] = self.rows(query)
        return made, spend, {tool: n for tool, n in by_tool.items() if n}

    def decisions(self) -> list[tuple[str, str, str]]:
        query = (
            "SELECT tool, decision, policy_code FROM audit_decisions WHERE agent_id IS NOT NULL ORDER BY id"
        )
        return [tuple(row) for row in self.rows(query)]

    def timeline(self, run_id: str = "k") -> list[tuple[str, str | None, str | None, str | None]]:
        query = "SELECT type, status, tool, message FROM run_events WHERE run_id = :run_id ORDER BY at, id"
        return [tuple(row) for row in self.rows(query, run_id=run_id)]

    def rows(self, query: str, **params: Any) -> list[Any]:
        with self.db.engine.connect() as connection:
            return list(connection.execute(sa.text(query), params))


@pytest.fixture
def tool() -> Iterator[ToolServer]:
    with ToolServer() as server:
        yield server


@pytest.fixture
def acting(settings: Settings, db: Database, caller: Caller, tool: ToolServer) -> Acting:
    return Acting(settings, db, caller, tool)


def entry(tool: str, decision: str, reason: str, ok: bool, result: Any = None) -> dict[str, Any]:
    return {"tool": tool, "decision": decision, "policy_reason": reason, "ok": ok, "result": result}


# What a run of actions leaves


def test_each_action_is_called_in_its_order_and_leaves_what_a_direct_call_leaves(acting: Acting) -> None:
    acting.tool.script(ok({"n": 1}), ok({"n": 2, "cost_usd": 0.125}))
    taken = acting.submit(SEND, PAY)
    assert (taken.outcome, taken.usage) == ("acquired", 1)
    assert acting.counters() == (0, 0, {}), "the run itself is no call"
    assert acting.carry_out().fate is Fate.COMPLETED
    assert acting.run().result == {
        "actions": [
            entry("send", "executed", "within_budget", True, {"n": 1}),
            entry("pay", "executed", "within_budget", True, {"n": 2, "cost_usd": 0.125}),
        ]
    }
    assert [request.json["tool"] for request in acting.tool.requests] == ["send", "pay"]
    assert {request.json["run_id"] for request in acting.tool.requests} == {"k"}
    assert acting.decisions() == [("send", "executed", "ok"), ("pay", "executed", "ok")]
    assert acting.counters() == (2, 375_000, {"send": 1, "pay": 1})
    outcomes = acting.rows(
        "SELECT o.outcome, o.spend_micro_usd FROM audit_outcomes o JOIN audit_decisions d ON d.id = o.decision_id"
        " WHERE d.agent_id IS NOT NULL ORDER BY d.id"
    )
    assert outcomes == [("completed", 250_000), ("completed", 125_000)]
    assert {row.actor for row in acting.rows("SELECT actor FROM audit_decisions")} == {acting.caller.key_id}
    [used] = acting.rows("SELECT sum(requests_total), sum(usage), sum(charged_total) FROM usage_counters")
    assert tuple(used) == (1, 1, 1), "actions are part of the run that was charged"


def test_the_runs_timeline_has_each_event_once(acting: Acting) -> None:
    acting.policy(blocked_tools=["pay"])
    acting.submit(SEND, SEND, PAY, SEND)
    assert acting.carry_out().fate is Fate.FAILED
    assert acting.timeline() == [
        ("run_queued", "queued", runs.ACTIONS, None),
        ("run_started", "started", runs.ACTIONS, None),
        ("tool_call", "start", "send", None),
        ("tool_result", "ok", "send", None),
        ("tool_call", "start", "send", None),
        ("tool_result", "ok", "send", "tool_idempotency"),
        ("tool_call", "start", "pay", None),
        ("tool_result", "blocked", "pay", "tool_not_allowed"),
        ("run_finished", "failed", runs.ACTIONS, "policy_blocked"),
    ]


def test_a_call_that_names_its_runs_timeline_is_told_there_once(acting: Acting) -> None:
    acting.submit({"tool": "send", "args": {"run_id": "here"}}, run_id="here")
    acting.carry_out()
    types = [type_ for type_, *_ in acting.timeline("here")]
    assert types == ["run_queued", "run_started", "tool_call", "tool_result", "run_finished"]


# Repeats, of direct calls and of each other


def test_an_action_that_was_made_directly_is_not_made_again_and_the_other_way_round(acting: Acting) -> None:
    acting.tool.script(ok({"n": 1}))
    direct = acting.call(SEND)
    assert direct.run is not None
    run_job(acting.runtime, acting.jobs[calls.JOB], direct.run.id)
    acting.submit(SEND, PAY)
    acting.carry_out()
    assert acting.run().result["actions"][0] == entry("send", "dedup", "tool_idempotency", True, {"n": 1})
    again = acting.call(PAY)
    assert (again.code, again.run and again.run.result) == (Code.IDEMPOTENCY, {"ok": True})
    assert len(acting.tool.requests) == 2


def test_a_direct_call_that_no_worker_has_begun_is_carried_out_by_the_one_that_waits_for_it(
    acting: Acting,
) -> None:
    """Else workers that are all busy with runs of actions would wait for each other."""
    direct = acting.call(SEND)
    acting.submit(SEND)
    assert acting.carry_out().fate is Fate.COMPLETED
    assert direct.run is not None
    assert acting.run(direct.run.key).state is RunState.COMPLETED
    assert acting.decisions() == [("send", "executed", "ok"), ("send", "dedup", "tool_idempotency")]


# Refusals and failures


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"blocked_tools": ["pay"]}, "tool_not_allowed"),
        ({"allowed_tools": ["send"]}, "tool_not_allowed"),
        ({"max_actions_per_hour": 1}, "max_actions_per_hour_exceeded"),
        ({"max_calls_per_tool": {"pay": 0}}, "max_calls_per_tool_exceeded"),
        ({"max_spend_usd_per_day": 0.74}, "daily_spend_exceeded"),
    ],
)
def test_a_refused_action_fails_the_run_with_what_was_done_until_then(
    acting: Acting, policy: dict[str, Any], code: str
) -> None:
    acting.policy(**policy)
    acting.submit(SEND, PAY, SEND)
    outcome = acting.carry_out()
    assert outcome.detail == f"policy_blocked: action 1, pay: {code}"
    run = acting.run()
    assert (run.state, run.error_code) == (RunState.FAILED, "policy_blocked")
    assert run.result == {
        "actions": [
            entry("send", "executed", "within_budget", True, {"ok": True}),
            entry("pay", "blocked", code, False),
        ]
    }
    assert [tool for tool, *_ in acting.decisions()] == ["send", "pay"], "what follows is not decided"
    assert acting.counters() == (1, 250_000, {"send": 1})


def test_a_tool_that_is_missing_or_switched_off_refuses_the_run(acting: Acting) -> None:
    acting.register("off", "read", enabled=False)
    for number, (name, code) in enumerate([("nosuch", "tool_not_found"), ("off", "tool_disabled")]):
        acting.submit({"tool": name}, key=f"k{number}")
        assert acting.carry_out(f"k{number}").detail == f"policy_blocked: action 0, {name}: {code}"
    assert acting.decisions() == [
        ("nosuch", "blocked", "tool_not_found"),
        ("off", "blocked", "tool_disabled"),
    ]


def test_a_tool_that_fails_fails_the_run_and_stops_it(acting: Acting) -> None:
    acting.tool.script(ok(), status(400, b"no"))
    acting.submit(SEND, PAY, {"tool": "send", "args": {"to": "z"}})
    acting.carry_out()
    run = acting.run()
    assert (run.state, run.error_code) == (RunState.FAILED, "tool_error")
    assert run.error_message == "action 1, pay: tool_error: the tool answered 400: no"
    assert [each["ok"] for each in run.result["actions"]] == [True, False]
    assert run.result["actions"][1]["result"]["status"] == 400
    assert len(acting.tool.requests) == 2
    assert acting.timeline()[-2][:3] == ("tool_result", "error", "pay")


def test_an_action_of_unknown_outcome_fails_the_run_and_is_held_and_listed(acting: Acting) -> None:
    acting.tool.script(broken_off())
    acting.submit(PAY, SEND)
    acting.carry_out()
    run = acting.run()
    assert (run.state, run.error_code) == (RunState.FAILED, "outcome_unknown")
    assert run.result["actions"][0]["policy_reason"] == "outcome_unknown"
    total, [held] = acting.db.run(unknown.list_calls, acting.caller.tenant_id, 10, 0)
    assert (total, held.tool) == (1, "pay")
    assert acting.counters() == (1, 500_000, {"pay": 1})
    acting.submit(PAY, key="again")
    acting.carry_out("again")
    assert acting.run("again").error_code == "outcome_unknown"
    assert len(acting.tool.requests) == 1


def test_what_is_too_large_to_keep_is_marked_and_does_not_fail_the_run(acting: Acting) -> None:
    large = {"text": "x" * 400_000}
    acting.tool.script(*[ok(large)] * 3, ok({"n": 4}))
    acting.submit(*[{"tool": "send", "args": {"n": n}} for n in range(4)])
    assert acting.carry_out().fate is Fate.COMPLETED
    results = [each["result"] for each in acting.run().result["actions"]]
    assert results == [{"truncated": True}, large, large, {"n": 4}]


def test_a_result_with_no_room_for_every_action_says_how_many_it_leaves_out(acting: Acting) -> None:
    settings = acting.runtime.settings.model_copy(update={"max_result_bytes": 1024})
    acting.runtime = Runtime.of(settings)
    acting.jobs = builtin(acting.runtime)
    acting.submit(*[{"tool": f"tool{n}"} for n in range(20)], dry_run=True)
    assert acting.carry_out().fate is Fate.COMPLETED
    result = acting.run().result
    assert len(result["actions"]) + result["truncated"] == 20
    assert result["actions"][0] == entry("tool0", "blocked", "tool_not_found", False)
    assert 900 < len(compact_json(result)) <= 1024


def test_the_first_fifty_actions_run_and_the_rest_is_counted(acting: Acting) -> None:
    acting.submit(*[SEND] * 53)
    acting.carry_out()
    result = acting.run().result
    assert (len(result["actions"]), result["ignored"]) == (50, 3)
    assert len(acting.tool.requests) == 1
    assert len(acting.decisions()) == 50


# The kill switch


def disable(acting: Acting) -> Any:
    return acting.db.run(governance.disable, acting.caller, AGENT, SwitchRequest(reason="odd"), WEEK_S)


def test_a_disabled_agents_run_is_refused_at_once_and_charged_to_nobody(acting: Acting) -> None:
    disable(acting)
    taken = acting.submit(SEND)
    assert (taken.outcome, taken.usage, taken.run.error_code) == ("refused", 0, "policy_blocked")
    assert acting.decisions() == [(runs.ACTIONS, "blocked", "agent_disabled")]


def test_the_switch_stops_a_queued_run_and_one_between_two_actions(acting: Acting) -> None:
    acting.submit(SEND, key="queued")
    acting.submit(SEND, PAY, key="running")
    claim = acting.claim("running")
    acted = acting.decide(claim, SEND, 0)
    assert acted is not None
    _, stopped = disable(acting)
    assert (stopped.queued, stopped.running) == (2, 1), "the action that waits for a worker is stopped too"
    for key in ("queued", "running", acted.call_key):
        assert (acting.run(key).state, acting.run(key).error_code) == (RunState.FAILED, "policy_blocked")
    assert acting.decide(claim, PAY, 1) is None
    assert acting.counters() == (0, 0, {})
    assert acting.tool.requests == []


def test_a_switch_that_no_policy_knows_of_is_asked_again_at_claim(acting: Acting) -> None:
    acting.submit(SEND)
    with acting.db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE agents SET disabled_at = onceonly_now()"))
    assert acting.carry_out().fate is Fate.NOT_CLAIMED
    assert (acting.run().state, acting.run().error_code) == (RunState.FAILED, "policy_blocked")
    assert acting.decisions() == [(runs.ACTIONS, "blocked", "agent_disabled")]


def test_a_whitelist_need_not_name_the_job_of_actions(acting: Acting) -> None:
    acting.policy(allowed_tools=["send"], blocked_tools=[runs.ACTIONS])
    acting.submit(SEND)
    assert acting.carry_out().fate is Fate.COMPLETED


# Crashes: one decision an action, and no call twice


def lost(acting: Acting, clock: Clock) -> None:
    """The worker that has the run dies."""
    clock.advance(LEASE_S + 1)
    acting.db.run(outbox.reap, 10, WEEK_S)


def test_a_zombies_judge_is_refused(acting: Acting, clock: Clock) -> None:
    acting.submit(SEND, PAY)
    zombie = acting.claim()
    lost(acting, clock)
    assert acting.decide(zombie) is None
    current = acting.claim()
    assert acting.decide(zombie) is None
    assert acting.decisions() == []
    assert acting.decide(current) is not None
    done = Answer(code=Code.OK, ok=True, allowed=True, decision="executed", result={})
    assert acting.db.run(actions.finish, zombie, 0, "send", done) is None
    assert acting.decisions() == [("send", "executed", "ok")]
    assert [type_ for type_, *_ in acting.timeline()].count("tool_result") == 0


def test_racing_and_repeated_decisions_on_an_action_are_one(acting: Acting) -> None:
    acting.submit(SEND)
    claim = acting.claim()
    answers = storm(8, lambda: acting.decide(claim))
    assert len({(acted.code, acted.call_id) for acted in answers if acted is not None}) == 1
    assert acting.decisions() == [("send", "executed", "ok")]
    assert acting.counters() == (1, 250_000, {"send": 1})
    assert [type_ for type_, *_ in acting.timeline()].count("tool_call") == 1


def test_an_action_ends_once(acting: Acting) -> None:
    acting.submit(SEND)
    claim = acting.claim()
    acting.decide(claim)
    first, second = (
        Answer(code=Code.OK, ok=True, allowed=True, decision="executed", result={"n": n}) for n in (1, 2)
    )
    for answer in (first, second):
        acted = acting.db.run(actions.finish, claim, 0, "send", answer)
        assert acted is not None
        assert acted.result == {"n": 1}
    assert [type_ for type_, *_ in acting.timeline()].count("tool_result") == 1


def test_a_resumed_run_goes_on_at_its_first_unfinished_action(acting: Acting, clock: Clock) -> None:
    """The finished one is neither decided nor called again, whatever changed meanwhile."""
    acting.tool.script(ok({"n": 1}), ok({"n": 2}))
    acting.submit(SEND, PAY)
    claim = acting.claim()
    acted = acting.decide(claim)
    assert acted is not None
    acting.carry_out(acted.call_key, calls.JOB)
    clock.advance(LIMITS[acting.caller.plan].default_ttl_s + 1)
    acting.policy(blocked_tools=["send"])
    lost(acting, clock)
    assert acting.carry_out().fate is Fate.COMPLETED
    assert [each["result"] for each in acting.run().result["actions"]] == [{"n": 1}, {"n": 2}]
    assert acting.decisions() == [("send", "executed", "ok"), ("pay", "executed", "ok")]
    assert len(acting.tool.requests) == 2


def test_a_decided_action_that_was_not_called_is_called_by_the_next_attempt(
    acting: Acting, clock: Clock
) -> None:
    acting.submit(SEND)
    acting.decide(acting.claim())
    acting.policy(blocked_tools=["pay"])
    lost(acting, clock)
    assert acting.carry_out().fate is Fate.COMPLETED
    assert len(acting.tool.requests) == 1
    assert acting.decisions() == [("send", "executed", "ok")]


@pytest.mark.parametrize(("action", "code", "calls_made"), [(SEND, None, 1), (PAY, "outcome_unknown", 0)])
def test_a_call_whose_worker_died_is_made_again_only_where_that_does_no_harm(
    acting: Acting, clock: Clock, action: dict[str, Any], code: str | None, calls_made: int
) -> None:
    acting.submit(action)
    acted = acting.decide(acting.claim(), action)
    assert acted is not None
    acting.db.run(claims.claim, acted.call_id, calls.JOB, LEASE_S, None)
    lost(acting, clock)
    acting.carry_out()
    assert acting.run().error_code == code
    assert len(acting.tool.requests) == calls_made


def test_a_call_whose_key_went_to_another_is_told_from_the_audit_trail(acting: Acting, clock: Clock) -> None:
    acting.submit(SEND)
    acted = acting.decide(acting.claim())
    assert acted is not None
    acting.carry_out(acted.call_key, calls.JOB)
    clock.advance(LIMITS[acting.caller.plan].default_ttl_s + 1)
    assert acting.call(SEND).code is Code.OK
    lost(acting, clock)
    assert acting.carry_out().fate is Fate.COMPLETED
    assert acting.run().result["actions"] == [entry("send", "executed", "within_budget", True)]
    assert len(acting.tool.requests) == 1


def test_an_action_whose_key_somebody_has_leased_waits_for_the_lease_as_a_direct_call_does(
    acting: Acting,
) -> None:
    acting.submit(SEND)
    claim, wanted = acting.claim(), acting.wanted(SEND)
    lease = LeaseRequest(key=calls.call_key(AGENT, wanted.tool, args_hash(wanted.args)))
    leased = acting.db.run(runs.take, acting.caller, runs.lease_taking(acting.caller, lease))
    acted = acting.decide(claim)
    assert acted is not None
    assert acted.code is Code.IDEMPOTENCY
    assert not isinstance(acting.db.run(actions.answer, acted), Answer)
    done = CompleteRequest(key=lease.key, lease_id=leased.run.lease_id, result={"sent": "by hand"})
    acting.db.run(leases.complete, acting.caller, done, WEEK_S)
    answer = acting.db.run(actions.answer, acted)
    assert isinstance(answer, Answer)
    assert (answer.decision, answer.result) == ("dedup", {"sent": "by hand"})


def test_an_action_whose_leased_key_went_to_a_call_is_told_as_failed(acting: Acting) -> None:
    """Of a lease no audit trail tells how it ended."""
    acting.submit(SEND)
    claim, wanted = acting.claim(), acting.wanted(SEND)
    lease = LeaseRequest(key=calls.call_key(AGENT, wanted.tool, args_hash(wanted.args)))
    leased = acting.db.run(runs.take, acting.caller, runs.lease_taking(acting.caller, lease))
    acted = acting.decide(claim)
    assert acted is not None
    given_up = CancelRequest(key=lease.key, lease_id=leased.run.lease_id)
    acting.db.run(leases.cancel, acting.caller, given_up, WEEK_S)
    assert acting.call(SEND).code is Code.OK
    answer = acting.db.run(actions.answer, acted)
    assert isinstance(answer, Answer)
    assert (answer.ok, answer.code) == (False, Code.TOOL_ERROR)


@pytest.mark.parametrize(("retaken", "reason"), [(False, "tool_not_allowed"), (True, "agent_disabled")])
def test_an_action_that_is_refused_when_its_call_is_claimed_refuses_the_run(
    acting: Acting, clock: Clock, retaken: bool, reason: str
) -> None:
    """Of a call whose key went to another one since, only that it was refused is known, and not why."""
    acting.submit(SEND)
    acted = acting.decide(acting.claim())
    assert acted is not None
    acting.policy(blocked_tools=["send"])
    assert acting.carry_out(acted.call_key, calls.JOB).fate is Fate.NOT_CLAIMED
    acting.policy(blocked_tools=[])
    if retaken:
        assert acting.call(SEND).code is Code.OK
    lost(acting, clock)
    assert acting.carry_out().detail == f"policy_blocked: action 0, send: {reason}"
    assert acting.run().result["actions"] == [entry("send", "blocked", reason, False)]
    assert acting.tool.requests == []


def test_a_key_that_is_used_again_is_decided_anew(acting: Acting, clock: Clock) -> None:
    acting.submit(SEND)
    acting.carry_out()
    clock.advance(WEEK_S + 1)
    assert acting.submit(SEND).outcome == "acquired"
    acting.carry_out()
    assert len(acting.decisions()) == 2
    assert len(acting.tool.requests) == 2


def test_two_runs_of_the_same_action_call_it_once(acting: Acting) -> None:
    acting.tool.script(after(0.5, ok({"n": 1})))
    for key in ("a", "b", "c"):
        acting.submit(SEND, key=key)
    keys = iter("abc")
    storm(3, lambda: acting.carry_out(next(keys)))
    results = [acting.run(key).result["actions"][0] for key in "abc"]
    assert Counter(each["decision"] for each in results) == {"executed": 1, "dedup": 2}
    assert all(each["result"] == {"n": 1} for each in results)
    assert len(acting.tool.requests) == 1


# Dry runs


def test_a_dry_run_decides_over_the_whole_list_and_does_nothing(acting: Acting) -> None:
    acting.policy(max_actions_per_hour=3, max_spend_usd_per_day=1.0, blocked_tools=["no"])
    send = [{"tool": "send", "args": {"n": n}, "spend_usd": 0.4} for n in range(3)]
    listed = [
        send[0],
        {"tool": "no"},
        send[0],
        send[1],
        send[2],
        {"tool": "pay"},
        {"tool": "pay", "args": {"n": 1}},
    ]
    acting.submit(*listed, dry_run="yes")
    assert acting.carry_out().fate is Fate.COMPLETED
    assert acting.run().result == {
        "actions": [
            entry("send", "executed", "within_budget", True),
            entry("no", "blocked", "tool_not_allowed", False),
            entry("send", "dedup", "tool_idempotency", True),
            entry("send", "executed", "within_budget", True),
            entry("send", "blocked", "daily_spend_exceeded", False),
            entry("pay", "executed", "within_budget", True),
            entry("pay", "blocked", "max_actions_per_hour_exceeded", False),
        ],
        "dry_run": True,
    }
    assert acting.tool.requests == []
    assert acting.counters() == (0, 0, {})
    assert acting.rows("SELECT FROM runs WHERE job = 'onceonly.tool_call'") == []
    assert [code for _, decision, code in acting.decisions() if decision == "dry_run"] == [
        "ok",
        "tool_explicitly_blocked",
        "tool_idempotency",
        "ok",
        "max_spend_usd_per_day_exceeded",
        "ok",
        "max_actions_per_hour_exceeded",
    ]
    logged = acting.db.run(governance.logs, acting.caller, AGENT, limit=50, decision="dry_run")
    assert [(each.allowed, each.spend_micro_usd) for each in reversed(logged)] == [
        (ok, 0) for ok in (True, False, True, True, False, True, False)
    ]
    activity = acting.db.run(governance.metrics, acting.caller, AGENT, "day")
    assert (activity.actions, activity.blocked, activity.tools) == (0, 0, [])


def test_a_dry_run_counts_what_was_really_used(acting: Acting) -> None:
    acting.policy(max_calls_per_tool={"send": 2})
    acting.submit(SEND)
    acting.carry_out()
    others = [{"tool": "send", "args": {"n": n}} for n in range(2)]
    acting.submit(SEND, *others, key="dry", dry_run=True)
    acting.carry_out("dry")
    reasons = [each["policy_reason"] for each in acting.run("dry").result["actions"]]
    assert reasons == ["tool_idempotency", "within_budget", "max_calls_per_tool_exceeded"]


def test_a_resumed_dry_run_has_one_row_an_action(acting: Acting, clock: Clock) -> None:
    acting.submit(SEND, PAY, dry_run=1)
    claim = acting.claim()
    acting.db.run(actions.foresee, claim, acting.wanted(SEND), 0, [])
    lost(acting, clock)
    assert acting.db.run(actions.foresee, claim, acting.wanted(PAY), 1, []) is None
    assert acting.carry_out().fate is Fate.COMPLETED
    assert acting.decisions() == [("send", "dry_run", "ok"), ("pay", "dry_run", "ok")]
    types = [type_ for type_, *_ in acting.timeline() if type_.startswith("tool")]
    assert types == ["tool_call", "tool_result"] * 2


# What stops the worker


def test_a_run_that_is_cancelled_leaves_the_next_action_undecided(acting: Acting) -> None:
    taken = acting.submit(SEND, PAY)
    claim = acting.claim()
    acting.decide(claim)
    acting.db.run(leases.cancel, acting.caller, CancelRequest(key="k", lease_id=taken.run.lease_id), WEEK_S)
    assert acting.decide(claim, PAY, 1) is None
    assert acting.db.run(claims.complete, claim, {}, WEEK_S) is Ending.CANCELLED
    assert len(acting.decisions()) == 1


def test_a_cancelled_run_takes_nothing_from_its_agents_counters(acting: Acting) -> None:
    """It was never counted as an action itself."""
    acting.call(SEND)
    taken = acting.submit(PAY)
    acting.db.run(leases.cancel, acting.caller, CancelRequest(key="k", lease_id=taken.run.lease_id), WEEK_S)
    assert acting.counters() == (1, 250_000, {"send": 1})


def test_a_takeover_waits_for_a_decision_that_is_being_made(acting: Acting, clock: Clock) -> None:
    """Else it would look for decided actions before this one is there, and decide on it again."""
    acting.submit(SEND)
    claim = acting.claim()
    deciding = actions.decide(claim, acting.wanted(SEND), 0)
    answer: Any = None
    with acting.db.engine.connect() as connection, connection.begin():
        while (statement := deciding.send(answer)).name != "actions.find":
            answer = statement.read(connection.execute(statement.query, statement.params))
        clock.advance(LEASE_S + 1)
        assert acting.db.run(outbox.reap, 10, WEEK_S) == []
    assert len(acting.db.run(outbox.reap, 10, WEEK_S)) == 1
