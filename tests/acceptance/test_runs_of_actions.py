"""Runs of actions as a user meets them: the published SDK, real workers that die, and a tool that counts for itself."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from onceonly import OnceOnly
from support.process_nodes import Process
from support.sdk_tenants import Tenant
from support.tool_server import Handler, ToolServer, after, ok
from support.worker_system import System

from onceonly_jobs.contracts.leases import CancelRequest
from onceonly_jobs.contracts.tools import ToolRequest
from onceonly_jobs.domain.fingerprint import MAX_DEPTH
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.services import account, leases, runs, tools
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.vault import Vault

AGENT = "support-bot"
AUTH = {"type": "hmac_sha256", "secret": "a shared secret"}
SECRET_KEY = "the key of this server, at least 16 long"

pytestmark = pytest.mark.timeout(180)


def mail(number: int) -> dict[str, Any]:
    return {"tool": "send_email", "args": {"n": number}, "spend_usd": 0.01}


@pytest.fixture
def tool() -> Iterator[ToolServer]:
    with ToolServer() as server:
        yield server


# With the published SDK


@pytest.fixture
def sdk(system: LocalSystem, tenant: Tenant, tool: ToolServer) -> Iterator[OnceOnly]:
    """A client of a tenant with the tool `send_email`."""
    client = OnceOnly(api_key=tenant.api_key, base_url=system.base_url, timeout=40)
    client.gov.create_tool(
        {"name": "send_email", "url": tool.url, "scope_id": "global", "auth": AUTH, "max_retries": 0}
    )
    yield client
    client.close()


def asked(*actions: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"agent_id": AGENT, "actions": list(actions), **metadata}


def test_the_sdk_runs_actions_and_waits_for_them(sdk: OnceOnly, tool: ToolServer, key: str) -> None:
    tool.script(ok({"sent": 1}), ok({"sent": 2}))
    result = sdk.ai.run_and_wait(key, metadata=asked(mail(1), mail(2)), run_id=f"{key}:run", poll_min=0.1)
    assert (result.ok, result.status) == (True, "completed")
    assert [each["result"] for each in result.result["actions"]] == [{"sent": 1}, {"sent": 2}]
    again = sdk.ai.run_and_wait(key, metadata=asked(mail(1), mail(2)))
    assert again.result == result.result
    assert [request.json["args"] for request in tool.requests] == [{"n": 1}, {"n": 2}]
    assert [entry.decision for entry in sdk.gov.agent_logs(AGENT)] == ["executed", "executed"]
    assert sdk.gov.agent_metrics(AGENT).total_spend_usd == 0.02
    direct = sdk.ai.run_tool(agent_id=AGENT, tool="send_email", args={"n": 2})
    assert (direct.decision, direct.result) == ("dedup", {"sent": 2})
    timeline = sdk.get_run_timeline(f"{key}:run")
    assert [event["type"] for event in timeline["events"]] == [
        "run_queued",
        "run_started",
        *["tool_call", "tool_result"] * 2,
        "run_finished",
    ]


def test_an_answer_as_deep_as_may_be_is_shown_in_the_runs_result(
    sdk: OnceOnly, tool: ToolServer, key: str
) -> None:
    deep: dict[str, Any] = {"a": 1}
    for _ in range(MAX_DEPTH - 1):
        deep = {"a": deep}
    tool.script(ok(deep), ok({"a": deep}))
    result = sdk.ai.run_and_wait(key, metadata=asked(mail(1), mail(2)), poll_min=0.1)
    assert (result.ok, result.status) == (True, "completed")
    first, second = (each["result"] for each in result.result["actions"])
    assert (first, second["data"][:6]) == (deep, '{"a": ')


def test_the_sdk_reads_a_refused_action_as_a_failed_run(sdk: OnceOnly, tool: ToolServer, key: str) -> None:
    sdk.gov.upsert_policy({"agent_id": AGENT, "max_calls_per_tool": {"send_email": 1}})
    result = sdk.ai.run_and_wait(key, metadata=asked(mail(1), mail(2), mail(3)), poll_min=0.1)
    assert (result.ok, result.status, result.error_code) == (False, "failed", "policy_blocked")
    run = sdk.ai.run(key, metadata=asked(mail(1), mail(2), mail(3)))
    assert (run.ok, run.status, run.error_code) == (False, "failed", "policy_blocked")
    assert len(tool.requests) == 1


def test_the_sdk_reads_a_dry_run(sdk: OnceOnly, tool: ToolServer, key: str) -> None:
    result = sdk.ai.run_and_wait(key, metadata=asked(mail(1), {"tool": "nope"}, dry_run=True), poll_min=0.1)
    assert (result.status, result.result["dry_run"]) == ("completed", True)
    assert [each["policy_reason"] for each in result.result["actions"]] == ["within_budget", "tool_not_found"]
    assert [(entry.decision, entry.allowed) for entry in sdk.gov.agent_logs(AGENT)] == [
        ("dry_run", False),
        ("dry_run", True),
    ]
    assert tool.requests == []


def test_the_kill_switch_stops_a_run_in_mid_way(sdk: OnceOnly, tool: ToolServer, key: str) -> None:
    def switched_off(handler: Handler) -> None:
        sdk.gov.disable_agent(AGENT, reason="suspicious")
        handler.answer(200, b"{}")

    tool.script(ok(), switched_off)
    result = sdk.ai.run_and_wait(key, metadata=asked(mail(1), mail(2), mail(3)), poll_min=0.1)
    assert (result.ok, result.error_code) == (False, "policy_blocked")
    assert [request.json["args"] for request in tool.requests] == [{"n": 1}, {"n": 2}]
    refused = sdk.ai.run_and_wait(f"{key}:2", metadata=asked(mail(4)), poll_min=0.1)
    assert (refused.status, refused.error_code) == ("failed", "policy_blocked")
    assert len(tool.requests) == 2


def test_many_runs_of_the_same_actions_call_each_once_with_few_workers(
    sdk: OnceOnly, tool: ToolServer, key: str
) -> None:
    """Each worker is busy with a run of actions, while the calls they wait for are each other's."""
    tool.script(*[after(0.2, ok())] * 5)
    actions = [mail(n) for n in range(5)]
    orders = [actions[n:] + actions[:n] for n in range(5)] * 2
    results: list[Any] = []

    def one(number: int) -> None:
        asking = asked(*orders[number])
        results.append(sdk.ai.run_and_wait(f"{key}:{number}", metadata=asking, poll_min=0.1, poll_max=0.3))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(orders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.status for result in results] == ["completed"] * len(orders)
    decisions = Counter(each["decision"] for result in results for each in result.result["actions"])
    assert decisions == {"executed": 5, "dedup": 45}
    assert Counter(request.json["args"]["n"] for request in tool.requests) == dict.fromkeys(range(5), 1)


# With workers that are killed


@pytest.fixture
def extra_env() -> dict[str, str]:
    return {"ONCEONLY_SECRET_KEY": SECRET_KEY, "ONCEONLY_TOOL_ALLOW": "loopback"}


@pytest.fixture
def start(parts: System, beat: Process) -> Iterator[Callable[[], Process]]:
    """Starts a worker."""
    running: list[Process] = []

    def started() -> Process:
        worker = parts.process("worker", "--concurrency", "1")
        worker.start()
        running.append(worker)
        worker.ready()
        return worker

    yield started
    for worker in running:
        worker.teardown()


def register(db: Database, tool: ToolServer, name: str, effect: str) -> None:
    api_key = db.run(account.create_key, "t").api_key
    request = {"name": name, "url": tool.url, "auth": AUTH, "effect": effect, "max_retries": 0}
    caller = db.run(account.authenticate, api_key)
    db.run(tools.put, caller, ToolRequest.model_validate(request), Vault(SECRET_KEY))


def submit(parts: System, *actions: dict[str, Any]) -> None:
    assert parts.jobs.enqueue(runs.ACTIONS, key="k", metadata=asked(*actions)).status == "acquired"


def traces(parts: System) -> tuple[int, dict[str, int]]:
    """How many decisions on actions there are, and the events of their run's timeline."""
    [row] = parts.rows("SELECT count(*) AS n FROM audit_decisions WHERE agent_id IS NOT NULL")
    return row["n"], dict(Counter(parts.events("k")))


ONCE_EACH = {
    "run_queued": 1,
    "lease_expired": 1,
    "run_retried": 1,
    "run_started": 2,
    "tool_call": 3,
    "tool_result": 3,
    "run_finished": 1,
}


def test_a_worker_killed_between_two_actions_is_followed_by_one_that_goes_on(
    parts: System, start: Callable[[], Process], tool: ToolServer
) -> None:
    first = start()
    parts.jobs.enqueue("effect", key="warm up")
    register(parts.db, tool, "send_email", "idempotent")
    with parts.db.engine.connect() as holding:

        def held_up(handler: Handler) -> None:
            """The next decision has to wait for the agent's row."""
            holding.execute(sa.text("SELECT FROM agents FOR UPDATE"))
            handler.answer(200, b'{"n": 1}')

        tool.script(held_up, ok({"n": 2}), ok({"n": 3}))
        submit(parts, mail(1), mail(2), mail(3))
        parts.until(
            lambda: parts.rows("SELECT FROM run_actions WHERE done_at IS NOT NULL"), "the first action"
        )
        first.kill()
        holding.rollback()
    start()
    row = parts.finished("k")
    assert (row["state"], row["attempt"]) == ("completed", 2)
    assert [each["result"] for each in row["result"]["actions"]] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert [request.json["args"]["n"] for request in tool.requests] == [1, 2, 3]
    assert traces(parts) == (3, ONCE_EACH)


@pytest.mark.parametrize(
    ("effect", "state", "calls"), [("idempotent", "completed", 4), ("irreversible", "failed", 2)]
)
def test_a_worker_killed_in_the_middle_of_an_action_is_followed_as_its_tool_allows(
    parts: System, start: Callable[[], Process], tool: ToolServer, effect: str, state: str, calls: int
) -> None:
    first = start()
    parts.jobs.enqueue("effect", key="warm up")
    register(parts.db, tool, "send_email", effect)

    def killing(handler: Handler) -> None:
        first.kill()
        handler.answer(200, b'{"lost": true}')

    tool.script(ok({"n": 1}), killing, ok({"n": 2}), ok({"n": 3}))
    submit(parts, mail(1), mail(2), mail(3))
    parts.until(lambda: len(tool.requests) == 2, "the second call")
    start()
    row = parts.finished("k")
    assert row["state"] == state
    assert len(tool.requests) == calls
    keys = Counter(request.json["idempotency_key"] for request in tool.requests)
    if state == "completed":
        assert [each["result"] for each in row["result"]["actions"]] == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert sorted(keys.values()) == [1, 1, 2], "the repeat is the same call to the tool"
        assert traces(parts) == (3, ONCE_EACH)
    else:
        assert row["error_code"] == "outcome_unknown"
        assert [each["ok"] for each in row["result"]["actions"]] == [True, False]
        assert traces(parts)[0] == 2


def test_a_cancelled_run_breaks_its_call_off_and_what_is_known_of_it_is_kept(
    parts: System, start: Callable[[], Process], tool: ToolServer
) -> None:
    worker = start()
    parts.jobs.enqueue("effect", key="warm up")
    register(parts.db, tool, "send_email", "irreversible")
    tool.script(after(60, ok()))
    submit(parts, mail(1), mail(2))
    parts.until(lambda: tool.requests, "the first call")
    caller = parts.db.run(account.authenticate, parts.db.run(account.create_key, "t").api_key)
    handle = CancelRequest(key="k", lease_id=parts.row("k")["lease_id"])
    parts.db.run(leases.cancel, caller, handle, 60)
    [call] = parts.until(lambda: parts.rows("SELECT key FROM runs WHERE state = 'unknown'"), "the call's end")
    assert parts.row(call["key"])["tool"] == "send_email"
    parts.jobs.enqueue("effect", key="next")
    parts.finished("next")
    assert worker.status == "running"
    assert "won't stop" not in worker.logs()
    assert parts.row("k")["state"] == "cancelled"
    assert len(tool.requests) == 1
