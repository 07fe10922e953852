"""The checker finds each kind of damage in a history that was doctored to show it, and nothing in a good one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.services.calls import call_key
from onceonly_jobs.torture.checker import Evidence, check
from onceonly_jobs.torture.facts import Facts, Row
from onceonly_jobs.torture.history import Effect, Op, Outcome
from onceonly_jobs.torture.jobs import GOVERNED, POISON, WORK

_numbers = itertools.count(1)
CALL: Row = {"agent_id": "a", "tool": "torture.irreversible", "args": {"n": 1}, "spend_usd": 0.5}
CALL_KEY = call_key("a", "torture.irreversible", args_hash({"n": 1}))


def op(kind: str, key: str, at: float, answer: Row, took_s: float = 0.1, **fields: Any) -> Op:
    given: Row = {"sent": {}, "status": 200, "outcome": Outcome.OK, "client": 1, **fields}
    n = next(_numbers)
    return Op(n=n, kind=kind, key=key, invoked_at=at, ended_at=at + took_s, answer=answer, **given)


def lock(at: float, told: str, **fields: Any) -> Op:
    return op("lock", "lock:1", at, {"status": told, "ttl": 10}, sent={"ttl": 10}, **fields)


def lease(at: float, lease_id: str) -> Op:
    answer = {"status": "acquired", "ttl": 10, "lease_id": lease_id, "error_code": None}
    return op("lease", "lease:1", at, answer, sent={"ttl": 10})


def complete(at: float, lease_id: str, by: str) -> Op:
    return op(
        "complete", "lease:1", at, {"status": "completed"}, sent={"lease_id": lease_id, "result": {"by": by}}
    )


def run_row(key: str, **fields: Any) -> Row:
    row: Row = {
        "id": 1,
        "key": key,
        "owner": "server",
        "state": "completed",
        "fencing_token": 7,
        "attempt": 1,
    }
    row |= {"job": WORK, "agent_id": None, "effect": None, "error_code": None, "error_message": None}
    return {**row, "result": {"seq": 1, "token": 7, "attempt": 1}, "dead_lettered": False, **fields}


def start(key: str, seq: int, token: int, attempt: int) -> Effect:
    data = {"token": token, "attempt": attempt, "idempotency_key": f"of {key}"}
    return Effect(seq=seq, at=seq, kind="start", key=key, data=data)


def called(seq: int, idempotency_key: str = "k") -> Effect:
    data = {"tool": "torture.irreversible", "idempotency_key": idempotency_key}
    return Effect(seq=seq, at=seq, kind="call", key="a/torture.irreversible/1", data=data)


def decision(run_key: str, **fields: Any) -> Row:
    row: Row = {
        "id": 1,
        "actor": "key",
        "agent_id": None,
        "run_key": run_key,
        "decision": "executed",
        "booked": 0,
    }
    return {**row, "outcome": "completed", "day": "today", **fields}


def good() -> Evidence:
    """A lock and its duplicate, a lease that ran out and its successor, a run by the server, and a tool call."""
    result = {"seq": 1, "token": 7, "attempt": 1}
    told = {"status": "completed", "result": result, "error_code": None}
    executed = {"ok": True, "allowed": True, "decision": "executed", "result": {"seq": 2}}
    ops = [
        lock(0, "locked"),
        lock(5, "duplicate"),
        lock(11, "locked"),
        lease(0, "L1"),
        lease(20, "L2"),
        complete(21, "L2", "second"),
        op("result", "lease:1", 22, {"status": "completed", "result": {"by": "second"}, "error_code": None}),
        op("run", "run:1", 0, {"status": "acquired", "error_code": None}),
        op("result", "run:1", 3, told),
        op("tool", "a/torture.irreversible/1", 0, executed, sent=CALL),
        op("forbid", "a", 100, {}),
    ]
    own = {"owner": "caller", "job": None, "result": {"by": "second"}, "fencing_token": 2}
    facts = Facts(
        runs=[run_row("run:1"), run_row("lease:1", **own), run_row(CALL_KEY, job="onceonly.tool_call")],
        starts=[
            {"key": "lease:1", "attempt": 0, "agent_id": None, "at": 0.0},
            {"key": "lease:1", "attempt": 0, "agent_id": None, "at": 20.0},
            {"key": "run:1", "attempt": 1, "agent_id": None, "at": 1.0},
            {"key": "governed:a:1", "attempt": 1, "agent_id": "a", "at": 99.0},
        ],
        queued=1,
        calls=1,
        decisions=[decision("run:1"), decision(CALL_KEY, agent_id="a", booked=500_000)],
        agents=[
            {
                "agent_id": "a",
                "policy": {"max_spend_usd_per_day": 0.5},
                "day_on": "today",
                "day_spend_micro_usd": 500_000,
            }
        ],
        changes=[
            {"agent_id": "a", "change": "upsert", "policy": {"blocked_tools": [GOVERNED]}, "at": 100.05}
        ],
        usage={
            "make": {"usage": 1, "requests": 3, "charged": 0},
            "ai": {"usage": 4, "requests": 4, "charged": 4},
        },
        duplicates=1,
    )
    return Evidence(ops, [start("run:1", 1, 7, 1), called(2)], facts)


def with_ops(*more: Op) -> Evidence:
    return replace(good(), ops=[*good().ops, *more])


def with_effects(*more: Effect) -> Evidence:
    return replace(good(), effects=[*good().effects, *more])


def with_facts(**fields: Any) -> Evidence:
    return replace(good(), facts=replace(good().facts, **fields))


def with_row(**fields: Any) -> Evidence:
    first, *others = good().facts.runs
    return with_facts(runs=[{**first, **fields}, *others])


def ticks(*seconds: int, **fields: Any) -> Evidence:
    found = [
        {"name": "s", "key": f"cron:s:{at}", "state": "fired", "tick_at": float(at), **fields}
        for at in seconds
    ]
    done = {tick["key"] for tick in found}
    runs = [*good().facts.runs, *(run_row(key, job=None, result=None) for key in sorted(done))]
    decisions = [*good().facts.decisions, *(decision(key) for key in sorted(done))]
    usage = {
        **good().facts.usage,
        "ai": {"usage": 4 + len(done), "requests": 4 + len(done), "charged": 4 + len(done)},
    }
    schedules = [{"name": "s", "every_s": 1, "paused_at": float(max(seconds)) + 0.5}]
    taken = {"queued": 1 + len(done), "usage": usage}
    return with_facts(ticks=found, schedules=schedules, runs=runs, decisions=decisions, **taken)


def test_a_good_history_has_no_violation() -> None:
    assert check(good()) == []


def test_a_good_schedule_has_no_violation() -> None:
    assert check(ticks(1, 2, 3)) == []


DOCTORED = {
    "two winners of one window": (with_ops(lock(16, "locked")), "one-winner"),
    "a duplicate of nothing": (with_ops(lock(60, "duplicate")), "one-winner"),
    "a lease taken while it is held": (with_ops(lease(20.2, "L3")), "one-holder"),
    "a holder that was taken over": (with_ops(complete(40, "L1", "first")), "fencing"),
    "two results": (
        with_ops(op("result", "run:1", 9, {"status": "completed", "result": {"seq": 5}, "error_code": None})),
        "one-answer",
    ),
    "a result that was not kept": (
        with_row(result={"seq": 1, "token": 7, "attempt": 1, "new": 1}),
        "one-answer",
    ),
    "a result of no start": (replace(good(), effects=[called(2)]), "witnessed"),
    "a result of an older token": (with_row(fencing_token=8), "fencing"),
    "a token granted twice": (with_effects(start("run:1", 3, 7, 1)), "fencing"),
    "a token that is not kept": (with_effects(start("run:1", 3, 9, 2)), "fencing"),
    "a token that falls": (with_effects(start("run:1", 3, 5, 2)), "fencing"),
    "an acknowledged run that is gone": (with_ops(op("run", "run:9", 1, {"status": "polling"})), "lost"),
    "a run that never ends": (with_row(state="queued"), "stuck"),
    "a run that died": (with_row(state="failed", dead_lettered=True, error_code="worker_lost"), "dead"),
    "a run that failed by itself": (with_row(state="failed", error_code="timeout"), "failed"),
    "a poison that is not put away": (with_row(job=POISON), "poison"),
    "a call made twice": (with_effects(called(3)), "called-twice"),
    "a call under two idempotency keys": (with_effects(called(3, "other")), "idempotency-key"),
    "a call that was never made": (replace(good(), effects=[start("run:1", 1, 7, 1)]), "witnessed"),
    "a decision without a row": (with_facts(decisions=[decision("run:1")]), "audit"),
    "a decision nobody asked for": (
        with_facts(decisions=[*good().facts.decisions, decision("run:1", id=3)]),
        "audit",
    ),
    "a decision without an outcome": (
        with_facts(decisions=[good().facts.decisions[0], decision(CALL_KEY, agent_id="a", outcome=None)]),
        "audit",
    ),
    "a trail that was changed": (with_facts(audit_findings=["decision 1: changed"]), "audit"),
    "more spent than allowed": (
        with_facts(agents=[{**good().facts.agents[0], "policy": {"max_spend_usd_per_day": 0.4}}]),
        "budget",
    ),
    "a counter that is off": (
        with_facts(agents=[{**good().facts.agents[0], "day_spend_micro_usd": 1}]),
        "budget",
    ),
    "a start behind the switch": (
        with_facts(
            starts=[*good().facts.starts, {"key": "governed:a:2", "attempt": 1, "agent_id": "a", "at": 101.0}]
        ),
        "kill-switch",
    ),
    "a tick that is missing": (ticks(1, 3), "ticks"),
    "a tick that did not fire": (ticks(1, 2, state="skipped"), "ticks"),
    "a unit too much": (
        with_facts(usage={**good().facts.usage, "make": {"usage": 2, "requests": 3}}),
        "metering",
    ),
    "a request that was not counted": (
        with_facts(usage={**good().facts.usage, "make": {"usage": 1, "requests": 2}}),
        "metering",
    ),
}


@pytest.mark.parametrize("damage", DOCTORED)
def test_damage_is_found(damage: str) -> None:
    evidence, name = DOCTORED[damage]
    assert name in {violation.check for violation in check(evidence)}


def test_what_no_answer_has_told_may_have_happened_or_not() -> None:
    doubtful = lock(16, "", outcome=Outcome.UNKNOWN, status=None, tries=2)
    counted = {**good().facts.usage, "make": {"usage": 1, "requests": 4, "charged": 0}}
    assert check(replace(with_ops(doubtful), facts=replace(good().facts, usage=counted))) == []
    assert check(with_ops(doubtful)) == []
