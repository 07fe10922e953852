"""50 callers in 5 processes, 2 API processes, 2 workers, and a tool that counts: an agent does exactly what it may.

ONCEONLY_TEST_TRIALS and ONCEONLY_TEST_ROUNDS make it a longer storm, ONCEONLY_TEST_SEED repeats one.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import Any

import pytest
from support.callers import Answer, Body, Callers
from support.clients import unique
from support.fleets import SLOTS, Fleet, fleet
from support.tool_server import Behaviour, Received, after, ok, status

from onceonly_jobs.domain.budgets import AgentModel
from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.governance import Code, usd

TRIALS = int(os.environ.get("ONCEONLY_TEST_TRIALS", "6"))
ROUNDS = int(os.environ.get("ONCEONLY_TEST_ROUNDS", "1"))
SEED = int(os.environ.get("ONCEONLY_TEST_SEED") or secrets.randbits(32))
CALLERS = 50
TOOLS = ("send_email", "stripe.charge", "search")
PRICES = (0.07, 0.03, 0.1, 0.333333, 0.0000015, 0.25, 0.011, 0.0)

pytestmark = pytest.mark.timeout(180 + 4 * (TRIALS + ROUNDS))


@pytest.fixture(scope="module")
def ours(servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(servers, template, tmp_path_factory.mktemp("storms")) as running:
        for tool in TOOLS:
            running.register(tool)
        yield running


@pytest.fixture(scope="module")
def callers(ours: Fleet) -> Iterator[Callers]:
    with Callers(ours.base_urls, ours.tenant.api_key) as started:
        yield started


@dataclass(frozen=True)
class Trial:
    """A policy, the calls that meet it, and how many of them it allows, where that can be told beforehand."""

    policy: dict[str, Any]
    calls: list[tuple[str, float]]
    allows: int | None = None

    def bodies(self, agent_id: str) -> list[Body]:
        return [
            {"agent_id": agent_id, "tool": tool, "args": {"n": n}, "spend_usd": spend}
            for n, (tool, spend) in enumerate(self.calls)
        ]


def a_dollar_a_day(_: random.Random) -> Trial:
    return Trial({"max_spend_usd_per_day": 1.0}, [("send_email", 0.07)] * CALLERS, allows=14)


def five_calls_of_a_tool_a_day(_: random.Random) -> Trial:
    return Trial({"max_calls_per_tool": {"send_email": 5}}, [("send_email", 0.01)] * CALLERS, allows=5)


def five_calls_an_hour(rng: random.Random) -> Trial:
    calls = [(rng.choice(TOOLS), 0.01) for _ in range(CALLERS)]
    return Trial({"max_actions_per_hour": 5}, calls, allows=5)


def everything_at_random(rng: random.Random) -> Trial:
    limits = {
        "max_spend_usd_per_day": rng.choice((0.35, 0.7, 1.0, 1.7)),
        "max_actions_per_hour": rng.randint(3, 30),
        "max_calls_per_tool": {tool: rng.randint(0, 10) for tool in rng.sample(TOOLS, 2)},
        "pricing_rules": [{"tool": tool, "price_usd": rng.choice(PRICES)} for tool in rng.sample(TOOLS, 2)],
    }
    chosen = rng.sample(sorted(limits), rng.randint(1, len(limits)))
    prices = rng.sample(PRICES, 3)
    calls = [(rng.choice(TOOLS), rng.choice(prices)) for _ in range(CALLERS)]
    return Trial({name: limits[name] for name in chosen}, calls)


FORMS: tuple[Callable[[random.Random], Trial], ...] = (
    a_dollar_a_day,
    five_calls_of_a_tool_a_day,
    five_calls_an_hour,
    everything_at_random,
    everything_at_random,
    everything_at_random,
)


def hits(ours: Fleet, agent_id: str) -> list[Received]:
    """What the tool itself has seen of an agent."""
    return [request for request in ours.tool.requests if request.json["agent_id"] == agent_id]


def test_every_limit_admits_exactly_what_it_says(ours: Fleet, callers: Callers) -> None:
    seen: Counter[str] = Counter()
    for number in range(TRIALS):
        seed, form = SEED + number, FORMS[number % len(FORMS)]
        print(f"trial {number}, {form.__name__}: ONCEONLY_TEST_SEED={seed}")
        trial = form(random.Random(seed))
        ours.early_in_the_hour()
        agent_id = unique("agent")
        for name, value in trial.policy.items():  # limit by limit, in an order of its own
            ours.policy(agent_id, **{name: value})
        answers = callers.storm(trial.bodies(agent_id))
        check(ours, agent_id, trial, answers)
        seen.update(answer.told["policy_code"] for answer in answers)
        ours.tool.requests.clear()
    print(f"{TRIALS} trials: {dict(seen)}")
    assert set(seen) == {Code.OK, Code.HOURLY_ACTIONS, Code.CALLS_PER_TOOL, Code.DAILY_SPEND}


def check(ours: Fleet, agent_id: str, trial: Trial, answers: list[Answer]) -> None:
    """Rule, answers, audit trail, counters and the tool itself agree on every single call."""
    decisions = ours.decisions(agent_id)
    assert len(decisions) == len(answers) == CALLERS
    by_args = {args_hash(answer.sent["args"]): answer for answer in answers}
    model = AgentModel(policy=trial.policy)
    for decision in decisions:
        answer = by_args.pop(decision["args_hash"])
        expected = refusal(model, answer.sent)
        code = model.decide(answer.sent["tool"], answer.sent["spend_usd"], decision["at"].astimezone(UTC))
        assert decision["policy_code"] == answer.told["policy_code"] == code
        if code is Code.OK:
            assert (answer.status, answer.told["decision"], answer.told["ok"]) == (200, "executed", True)
            assert (decision["decision"], decision["outcome"]) == ("executed", "completed")
        else:
            assert answer.status == 402
            assert expected[code].items() <= answer.told.items()
            assert set(answer.told) > {"resets_at", "message", "agent_id", "tool", "risk_level"}
            assert (decision["decision"], decision["outcome"], decision["booked"]) == ("blocked", None, 0)
    executed = [decision for decision in decisions if decision["decision"] == "executed"]
    made = [(request.json["tool"], request.json["args"]["n"]) for request in hits(ours, agent_id)]
    assert sorted(made) == sorted((a.sent["tool"], a.number) for a in answers if a.status == 200)
    assert len(made) == len(executed) == model.hour_actions
    assert trial.allows is None or len(made) == trial.allows
    booked = sum(decision["booked"] for decision in executed)
    assert booked == model.day_spend_micro_usd
    assert ours.counters(agent_id) == (len(executed), booked, dict(+model.day_calls))
    metrics = ours.http.get(f"/agents/{agent_id}/metrics").json()
    assert (metrics["total_actions"], metrics["blocked_actions"]) == (len(executed), CALLERS - len(executed))
    assert metrics["total_spend_usd"] == usd(booked)
    if "max_spend_usd_per_day" in trial.policy and trial.allows:
        assert metrics["total_spend_usd"] == 0.98


def refusal(model: AgentModel, sent: Body) -> dict[Code, dict[str, Any]]:
    """By code, the body of a refusal in the model's present state: the seed's words and the numbers behind them."""
    policy, tool = model.policy or {}, sent["tool"]
    cap, hourly = policy.get("max_spend_usd_per_day", 0), policy.get("max_actions_per_hour", 0)
    calls = policy.get("max_calls_per_tool", {}).get(tool, 0)

    def body(error: str, message: str, limit: float, used: float, requested: float) -> dict[str, Any]:
        return {
            "error": error,
            "policy_reason": error,
            "message": message,
            "limit": limit,
            "used": used,
            "requested": requested,
            "allowed": False,
            "decision": "blocked",
            "agent_id": sent["agent_id"],
            "tool": tool,
        }

    return {
        Code.DAILY_SPEND: body(
            "daily_spend_exceeded",
            f"Daily spend limit exceeded (${cap:.2f})",
            cap,
            usd(model.day_spend_micro_usd),
            usd(model.cost_micro_usd(tool, sent["spend_usd"])),
        ),
        Code.HOURLY_ACTIONS: body(
            Code.HOURLY_ACTIONS,
            f"Hourly action limit exceeded ({hourly}/hour)",
            hourly,
            model.hour_actions,
            1,
        ),
        Code.CALLS_PER_TOOL: body(
            Code.CALLS_PER_TOOL,
            f"Tool call limit exceeded ({tool}: {calls}/day)",
            calls,
            model.day_calls[tool],
            1,
        ),
    }


def test_fifty_equal_calls_are_one(ours: Fleet, callers: Callers) -> None:
    ours.early_in_the_hour()
    agent_id = unique("agent")
    ours.policy(agent_id, max_spend_usd_per_day=1.0, max_calls_per_tool={"send_email": 1})
    body = {"agent_id": agent_id, "tool": "send_email", "args": {"to": "a@example.com"}, "spend_usd": 0.07}
    answers = callers.storm([body] * CALLERS)
    expected = {"executed": 1, "dedup": CALLERS - 1}
    assert Counter(answer.told["decision"] for answer in answers) == expected
    assert all(answer.told["result"] == {"ok": True} for answer in answers)
    assert Counter(decision["decision"] for decision in ours.decisions(agent_id)) == expected
    assert len(hits(ours, agent_id)) == 1
    assert ours.counters(agent_id) == (1, 70_000, {"send_email": 1})


def snapshot(ours: Fleet) -> str:
    """Which transactions have committed by now."""
    return str(ours.rows("SELECT CAST(pg_current_snapshot() AS text) AS seen")[0]["seen"])


BETWEEN = """NOT pg_visible_in_snapshot({xid}, CAST(:first AS pg_snapshot))
    AND pg_visible_in_snapshot({xid}, CAST(:last AS pg_snapshot))"""


def committed_between(ours: Fleet, agent_id: str, first: str, last: str) -> tuple[Counter[str], Counter[str]]:
    """Moves of the agent's runs, and its decisions, that committed after one snapshot and before another one."""
    moves = f"SELECT what FROM witness WHERE agent_id = :agent_id AND {BETWEEN.format(xid='xid')}"
    xid = "CAST(CAST(transaction_id AS text) AS xid8)"
    decided = f"""SELECT policy_code AS what FROM audit_decisions
        WHERE tenant_id = :tenant_id AND agent_id = :agent_id AND {BETWEEN.format(xid=xid)}"""
    found = [
        Counter(row["what"] for row in ours.rows(query, agent_id=agent_id, first=first, last=last))
        for query in (moves, decided)
    ]
    return found[0], found[1]


def since(ours: Fleet, agent_id: str, first: str) -> tuple[Counter[str], Counter[str]]:
    return committed_between(ours, agent_id, first, snapshot(ours))


def is_busy(ours: Fleet, agent_id: str, first: str) -> bool:
    """Whether calls of the agent have been queued, claimed, kept alive and completed since a snapshot."""
    return since(ours, agent_id, first)[0].keys() >= {"queued", "in_progress", "extended", "completed"}


def is_asked(ours: Fleet, agent_id: str, first: str) -> bool:
    return bool(since(ours, agent_id, first)[1])


def by_number(request: Received) -> Behaviour:
    """Quick, slower than a heartbeat, and busy at first: asked again after a pause."""
    n = request.json["args"]["n"]
    if n % 6 == 1:
        return after(0.8, ok())
    return status(503, retry_after="0.4") if n % 6 == 5 else ok()


def test_nothing_of_an_agent_starts_or_goes_on_after_its_switch_has_answered(
    ours: Fleet, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch is thrown again and again, through the one API process and the other, at random moments."""
    rng = random.Random(SEED)
    print(f"ONCEONLY_TEST_SEED={SEED}")
    agent_id = unique("agent")
    ours.policy(agent_id, max_actions_per_hour=1_000_000)
    monkeypatch.setattr(ours.tool, "otherwise", by_number)
    bodies = [
        {"agent_id": agent_id, "tool": rng.choice(TOOLS), "args": {"n": n}, "spend_usd": 0.01}
        for n in range(CALLERS * 200 * ROUNDS)
    ]
    callers.start(bodies)
    moved, decided = Counter[str](), Counter[str]()
    for number in range(ROUNDS):
        url = f"{ours.base_urls[number % 2]}/agents/{agent_id}"
        enabled = snapshot(ours)
        ours.http.post(f"{url}/enable").raise_for_status()
        ours.system.until(partial(is_busy, ours, agent_id, enabled), "calls are under way")
        time.sleep(rng.uniform(0, 0.8))
        ours.http.post(f"{url}/disable", json={"reason": "odd"}).raise_for_status()
        disabled, sent = snapshot(ours), len(hits(ours, agent_id))
        moves, decisions = committed_between(ours, agent_id, enabled, disabled)
        moved, decided = moved + moves, decided + decisions
        ours.system.until(partial(is_asked, ours, agent_id, disabled), "the callers go on")
        time.sleep(rng.uniform(0.6, 0.9))  # longer than a heartbeat
        moves, decisions = since(ours, agent_id, disabled)
        assert not moves, f"round {number}: the agent's runs went on"
        assert set(decisions) == {Code.AGENT_DISABLED}, f"round {number}: a call was allowed"
        # A call that a worker was just about to send can't be called back; but each has one at the most.
        assert len(hits(ours, agent_id)) <= sent + SLOTS
    callers.stop()
    answers = callers.answers()
    ours.settle()
    print(f"{ROUNDS} rounds, {len(answers)} calls; while enabled: {dict(moved)} {dict(decided)}")
    assert moved["failed"] > 0, "the switch has stopped something"
    assert {answer.status for answer in answers} == {200}
    check_books(ours, agent_id)


def check_books(ours: Fleet, agent_id: str) -> None:
    """What the agent has used is what its claimed calls cost: one that was stopped before is given back."""
    decisions = ours.decisions(agent_id)
    executed = [decision for decision in decisions if decision["decision"] == "executed"]
    assert all(decision["outcome"] is not None for decision in executed)
    claimed = {
        row["decision_id"]
        for row in ours.rows(
            "SELECT decision_id FROM witness WHERE agent_id = :agent_id AND what = 'in_progress'",
            agent_id=agent_id,
        )
    }
    assert {decision["id"] for decision in executed if decision["booked"]} == claimed
    booked = sum(decision["booked"] for decision in executed)
    actions, spend, calls = ours.counters(agent_id)
    assert (actions, spend, sum(calls.values())) == (len(claimed), booked, len(claimed))
