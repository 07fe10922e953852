"""Processes are killed between any two steps of a tool call: nothing is decided, called, booked or told twice."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from support.callers import Answer, Body, Callers
from support.clients import unique
from support.fleets import Fleet, fleet
from support.process_nodes import Process
from support.worker_system import QUICK

from onceonly_jobs.domain.canonical import args_hash
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.services import audit

KILLS = int(os.environ.get("ONCEONLY_TEST_KILLS", "4"))
SEED = int(os.environ.get("ONCEONLY_TEST_SEED") or secrets.randbits(32))
LEASE_S = float(QUICK["ONCEONLY_WORKER_LEASE_S"])
IN_PROGRESS = 409
"""The caller's patience is over: it was allowed, and goes on."""
EFFECTS = {"read": "read", "mail": "idempotent", "pay": "irreversible"}

pytestmark = pytest.mark.timeout(180 + 5 * KILLS)


@pytest.fixture(scope="module")
def ours(servers: Any, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("killed")
    with fleet(servers, template, directory, ("-m", "support.failing")) as running:
        for tool, effect in EFFECTS.items():
            running.register(tool, effect=effect)
        yield running


@pytest.fixture
def agent_id(ours: Fleet) -> str:
    ours.early_in_the_hour()
    return unique("agent")


def keys(ours: Fleet, agent_id: str) -> list[str]:
    """The idempotency key of each call that the tool has got, in their order."""
    asked = (request.json for request in ours.tool.requests)
    return [call["idempotency_key"] for call in asked if call["agent_id"] == agent_id]


def arm(ours: Fleet, point: str) -> None:
    (ours.system.directory / point).touch()


def fired(ours: Fleet, point: str) -> bool:
    return not (ours.system.directory / point).exists()


WORKER_POINTS = (
    "worker before claims.claim",
    "worker after claims.claim",
    "worker before tools.for_call",
    "worker after tools.for_call",
    "worker before the request",
    "worker after the request",
    "worker before claims.complete",
    "worker after claims.complete",
)
NOT_CLAIMED, *_, ANSWERED, NOT_RECORDED, DONE = WORKER_POINTS
SENT_IN_VAIN = (ANSWERED, NOT_RECORDED)


@pytest.mark.parametrize("tool", ["mail", "pay"])
@pytest.mark.parametrize("point", WORKER_POINTS)
def test_a_worker_killed_at_any_step_leaves_one_decision_and_at_most_one_outcome(
    ours: Fleet, agent_id: str, point: str, tool: str
) -> None:
    arm(ours, point)
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(ours.http.post, "/ai/run", json=call(agent_id, tool))
        ours.system.until(lambda: fired(ours, point), f"a worker dies {point}")
        ours.clock.advance(LEASE_S + 1)
        answer = calling.result().json()
    lost = tool == "pay" and point not in (NOT_CLAIMED, DONE)
    [decision] = ours.decisions(agent_id)
    sent = keys(ours, agent_id)
    if lost:
        assert (answer["ok"], answer["policy_reason"], decision["outcome"]) == (
            False,
            "outcome_unknown",
            None,
        )
        assert len(sent) == (point in SENT_IN_VAIN)
    else:
        assert (answer["ok"], answer["decision"], decision["outcome"]) == (True, "executed", "completed")
        assert len(sent) == (2 if point in SENT_IN_VAIN else 1)
        assert len(set(sent)) == 1
    assert ours.counters(agent_id) == (1, 500_000, {tool: 1})
    again = ours.http.post("/ai/run", json=call(agent_id, tool)).json()
    assert (again["decision"], again["ok"]) == ("dedup", not lost)
    assert keys(ours, agent_id) == sent


API_POINTS = (
    ("api before agents.lock", 0),
    ("api before calls.judge", 0),
    ("api after calls.judge", 0),
    ("api committed calls.judge", 1),
)
"""With how many decisions each leaves behind."""


def test_an_api_process_killed_at_any_step_has_decided_wholly_or_not_at_all(ours: Fleet) -> None:
    """The client asks again, as clients do: the call is made once, whatever the first process has got done."""
    url, process = ours.base_urls[1], ours.apis[1]
    for point, decided in API_POINTS:
        agent_id = unique("agent")
        ours.early_in_the_hour()
        arm(ours, point)
        with pytest.raises(httpx.TransportError):
            ours.http.post(f"{url}/ai/run", json=call(agent_id, "pay"))
        assert fired(ours, point)
        again = ours.http.post("/ai/run", json=call(agent_id, "pay")).json()
        assert (again["ok"], again["decision"]) == (True, "dedup" if decided else "executed"), point
        decisions = Counter(decision["decision"] for decision in ours.decisions(agent_id))
        assert decisions == Counter(executed=1, dedup=decided), point
        assert len(keys(ours, agent_id)) == 1, point
        assert ours.counters(agent_id) == (1, 500_000, {"pay": 1}), point
        process.restart()
        ours.ready()


@pytest.mark.parametrize(("point", "decided"), [("api before calls.judge", 0), ("api after calls.judge", 1)])
def test_of_calls_that_are_judged_together_each_is_decided_or_not_at_all(
    ours: Fleet, point: str, decided: int
) -> None:
    """Key and agent are known, so the statement is whole in itself: its answer is its commit."""
    url, process, agent_id = ours.base_urls[1], ours.apis[1], unique("agent")
    ours.early_in_the_hour()
    for number in range(2):
        assert ours.http.post(f"{url}/ai/run", json=call(agent_id, "pay", before=number)).json()["ok"]
    arm(ours, point)
    bodies = [call(agent_id, "pay", n=number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for answer in [pool.submit(ours.http.post, f"{url}/ai/run", json=body) for body in bodies]:
            with pytest.raises(httpx.TransportError):
                answer.result()
    assert fired(ours, point)
    again = [ours.http.post("/ai/run", json=body).json() for body in bodies]
    assert {answer["ok"] for answer in again} == {True}
    decisions = Counter(decision["decision"] for decision in ours.decisions(agent_id))
    assert decisions["executed"] == 2 + len(bodies)
    assert (decisions["dedup"] > 0) == bool(decided)
    assert decisions.total() == 2 + len(bodies) + decisions["dedup"]
    assert len(keys(ours, agent_id)) == 2 + len(bodies)
    assert ours.counters(agent_id) == (10, 5_000_000, {"pay": 10})
    process.restart()
    ours.ready()


def call(agent_id: str, tool: str, spend_usd: float = 0.5, **args: Any) -> Body:
    return {"agent_id": agent_id, "tool": tool, "args": args, "spend_usd": spend_usd}


def test_whatever_is_killed_in_a_storm_each_answer_has_its_one_decision(ours: Fleet, agent_id: str) -> None:
    rng = random.Random(SEED)
    print(f"ONCEONLY_TEST_SEED={SEED}")
    rule = {
        "blocked_tools": ["delete_user"],
        "max_spend_usd_per_day": 100.0,
        "max_calls_per_tool": {"read": 25},
    }
    ours.policy(agent_id, **rule)
    tools = (*EFFECTS, "delete_user", "nobody_knows_it")
    bodies = [
        call(agent_id, rng.choice(tools), rng.choice((0.07, 0.01, 0.0)), n=rng.choice((n, n // 10)))
        for n in range(600 * KILLS)
    ]
    with Callers(ours.base_urls, ours.tenant.api_key, processes=3, threads=5) as callers:
        callers.start(bodies)
        killed = Counter(kill_something(ours, rng) for _ in range(KILLS))
        callers.stop()
        answers = callers.answers()
    ours.ready()
    ours.settle()
    statuses = Counter(answer.status for answer in answers)
    print(f"killed: {dict(killed)}; answers by status: {dict(statuses)}")
    assert {200, 404} <= set(statuses) <= {200, 402, 404, 409, None}
    check(ours, agent_id, answers)
    check_audit(ours)


def kill_something(ours: Fleet, rng: random.Random) -> str:
    """`kill -9` a process with its children, or one child, at any moment, and start it again as a supervisor would.

    Only when all of its kind serve: a storm in which nothing happens would prove nothing.
    """
    time.sleep(rng.uniform(0.4, 1.2))
    kinds: list[list[Process]] = [[*ours.apis], [*ours.workers], [ours.beat]]

    def whole_kinds() -> list[Process]:
        return [one for kind in kinds for one in kind if all(map(ours.serves, kind))]

    victim = rng.choice(ours.system.until(whole_kinds, "a whole kind serves"))
    kind = victim.name.rstrip("0123456789")
    if kind == "worker" and rng.random() < 0.5:
        rng.choice(psutil.Process(victim.pid).children()).kill()
        return "child of a worker"
    victim.restart()
    return kind


def check(ours: Fleet, agent_id: str, answers: list[Answer]) -> None:
    """Decisions, outcomes, counters, tool and clients agree, call by call."""
    decisions, asked = defaultdict(list), defaultdict(list)
    for decision in ours.decisions(agent_id):
        decisions[decision["tool"], decision["args_hash"]].append(decision)
    for answer in answers:
        asked[answer.sent["tool"], args_hash(answer.sent["args"])].append(answer)
    assert decisions.keys() <= asked.keys()
    runs = """SELECT decision_id, state FROM runs WHERE tenant_id = :tenant_id AND agent_id = :agent_id"""
    unknown = {r["decision_id"] for r in ours.rows(runs, agent_id=agent_id) if r["state"] == "unknown"}
    for same, told in asked.items():
        made = decisions[same]
        codes = Counter(decision["policy_code"] for decision in made)
        answered = [answer for answer in told if answer.status is not None]
        ended = Counter(decided_of(answer) for answer in answered if answer.status != IN_PROGRESS)
        assert ended <= codes, f"{same}: an answer without its decision"
        assert len(answered) <= codes.total(), f"{same}: an answer without its decision"
        assert codes.total() <= len(told), f"{same}: a call was decided twice"
        assert codes[Code.OK] <= 1, f"{same}: a call was allowed twice"
        for decision in made:
            held = decision["id"] in unknown
            assert (decision["outcome"] is None) == (held or decision["policy_code"] != Code.OK)
            assert not held or decision["tool"] == "pay"
    check_counters(ours, agent_id, [d for made in decisions.values() for d in made])
    check_tool(ours, agent_id, decisions)


def decided_of(answer: Answer) -> str:
    """The decision's code behind an answer. What came of the call hides it where that is not well."""
    if answer.status == 404:
        return Code.NOT_FOUND
    told = answer.told
    if told["decision"] == "blocked":
        return str(told["policy_code"])
    return Code.OK if told["decision"] == "executed" else Code.IDEMPOTENCY


def check_counters(ours: Fleet, agent_id: str, decisions: list[dict[str, Any]]) -> None:
    """What was reserved is booked or still open: each executed call counts once, with its cost."""
    executed = [decision for decision in decisions if decision["decision"] == "executed"]
    calls = Counter(decision["tool"] for decision in executed)
    assert ours.counters(agent_id) == (len(executed), sum(d["booked"] for d in executed), dict(calls))
    assert all(d["booked"] == d["spend_micro_usd"] for d in executed), "no tool has said what it cost"
    metrics = ours.http.get(f"/agents/{agent_id}/metrics").json()
    blocked = sum(not decision["allowed"] for decision in decisions)
    assert (metrics["total_actions"], metrics["blocked_actions"]) == (len(executed), blocked)


def check_tool(ours: Fleet, agent_id: str, decisions: dict[Any, list[dict[str, Any]]]) -> None:
    """The tool has got each executed call under one key, and no payment a second time."""
    got = defaultdict(list)
    for request in ours.tool.requests:
        sent = request.json
        if sent["agent_id"] == agent_id:
            got[sent["tool"], args_hash(sent["args"])].append(sent["idempotency_key"])
    for same, made in decisions.items():
        outcomes = [decision["outcome"] for decision in made if decision["policy_code"] == Code.OK]
        assert len(set(got[same])) <= len(outcomes)
        assert same[0] != "pay" or len(got[same]) <= 1, "an irreversible call was sent twice"
        assert "completed" not in outcomes or got[same], "a call was told to have been made, and was not"
    assert got.keys() <= decisions.keys()


def check_audit(ours: Fleet) -> None:
    """Sealed and verified, by the command."""
    ours.system.until(lambda: audit.verify(ours.system.db, None).unsealed == 0, "all is sealed")
    env = {**os.environ, "ONCEONLY_DATABASE_URL": ours.system.settings.require_database_url()}
    command = [sys.executable, "-m", "onceonly_jobs.cli.main", "audit", "verify"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok: ")
