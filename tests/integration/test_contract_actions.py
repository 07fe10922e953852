"""§2.3, §4.1: `metadata.actions` and `metadata.dry_run` over HTTP, carried out by a worker in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.tool_server import ToolServer, broken_off, ok

from onceonly_jobs import Jobs
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import EnqueueError, FeatureNotAvailable
from onceonly_jobs.services import claims, runs
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.handlers import builtin
from onceonly_jobs.worker.lifecycle import run_job
from onceonly_jobs.worker.runtime import Runtime
from tests.integration.conftest import Api, App, NewApi

AGENT = "support_bot"
SEND = {"tool": "send_email", "args": {"to": "a@example.com"}, "spend_usd": 0.001}
DELETE = {"tool": "delete_user", "args": {"id": 1}}
LINE = {"tool": "send_email", "decision": "executed", "policy_reason": "within_budget", "ok": True}


@pytest.fixture(scope="module")
def tool() -> Iterator[ToolServer]:
    with ToolServer() as server:
        yield server


Work = Callable[[Api, str], None]


@pytest.fixture(scope="module")
def keyed(shared_settings: Settings) -> Settings:
    """With a key for tools' secrets, and tools on this machine."""
    return shared_settings.model_copy(update={"secret_key": "a key of the server", "tool_allow": "loopback"})


@pytest.fixture(scope="module")
def app(keyed: Settings) -> Iterator[App]:
    with App(keyed) as running:
        yield running


@pytest.fixture(scope="module")
def work(keyed: Settings) -> Work:
    """Carries the run under a key out."""
    runtime = Runtime.of(keyed)
    jobs = builtin(runtime)

    def carry_out(api: Api, key: str) -> None:
        run_job(runtime, jobs[runs.ACTIONS], api.db.run(runs.find, api.tenant_id, key).id)

    return carry_out


@pytest.fixture
def api(app: App, shared_db: Database, tenant_on: NewApi, tool: ToolServer) -> Api:
    """A new tenant with the tool `send_email`."""
    tool.requests.clear()
    made: Api = tenant_on(app, shared_db)
    auth = {"type": "hmac_sha256", "secret": "a shared secret"}
    assert made.post("/tools", name="send_email", url=tool.url, auth=auth, max_retries=0).status_code == 200
    return made


def ask(api: Api, *listed: Any, key: str = "k", **metadata: Any) -> Any:
    return api.post("/ai/run", key=key, metadata={"agent_id": AGENT, "actions": list(listed), **metadata})


def events(api: Api, run_id: str = "k") -> list[tuple[str, str]]:
    return [(event["type"], event["status"]) for event in api.get(f"/runs/{run_id}").json()["events"]]


def test_a_run_of_actions_is_asked_for_and_answered_like_any_run(
    api: Api, work: Work, tool: ToolServer, a_lease_id: Any, recent: Any
) -> None:
    first = ask(api, SEND).json()
    assert first == {
        "ok": True,
        "status": "acquired",
        "key": "k",
        "ttl": 86_400,
        "ttl_left": None,
        "lease_id": a_lease_id,
        "version": 1,
        "first_seen_at": recent,
        "done_at": None,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": None,
        "usage": 1,
        "limit": 10_000_000,
        "charged": 1,
    }
    assert ask(api, SEND).json()["status"] == "polling"
    tool.script(ok({"sent": True}))
    work(api, "k")
    result = {"actions": [{**LINE, "result": {"sent": True}}]}
    again = ask(api, SEND).json()
    assert (again["status"], again["charged"], again["result"]) == ("completed", 0, result)
    assert api.get("/ai/result", key="k").json()["result"] == result
    assert events(api) == [
        ("run_queued", "queued"),
        ("run_started", "started"),
        ("tool_call", "start"),
        ("tool_result", "ok"),
        ("run_finished", "completed"),
    ]
    assert api.usage("ai")["charged_total_month"] == 1
    [row] = api.get(f"/agents/{AGENT}/logs").json()
    assert (row["tool"], row["decision"], row["spend_usd"]) == ("send_email", "executed", 0.001)
    assert api.get(f"/agents/{AGENT}/metrics").json()["total_actions"] == 1


def test_a_refused_action_is_a_failed_run_that_says_which_and_why(
    api: Api, work: Work, tool: ToolServer
) -> None:
    api.post(f"/policies/{AGENT}", blocked_tools=["delete_user"])
    ask(api, SEND, DELETE, SEND, run_id="support 1")
    work(api, "k")
    answer = ask(api, SEND).json()
    assert (answer["ok"], answer["status"], answer["error_code"]) == (False, "failed", "policy_blocked")
    assert not {"allowed", "decision"} & set(answer), "else the SDKs take it for a tool's answer"
    result = api.get("/ai/result", key="k").json()
    assert (result["ok"], result["status"], result["error_code"]) == (False, "failed", "policy_blocked")
    assert [each["decision"] for each in result["result"]["actions"]] == ["executed", "blocked"]
    assert events(api, "support 1")[-3:] == [
        ("tool_call", "start"),
        ("tool_result", "blocked"),
        ("run_finished", "failed"),
    ]
    blocked = api.get("/runs/support 1").json()["events"][-2]
    assert (blocked["tool"], blocked["message"], blocked["agent_id"]) == (
        "delete_user",
        "tool_not_allowed",
        AGENT,
    )
    assert blocked["data"]["action"] == 1
    assert len(tool.requests) == 1


def test_a_failed_tool_is_a_tool_error(api: Api, work: Work, tool: ToolServer) -> None:
    tool.script(broken_off())
    ask(api, SEND, SEND)
    work(api, "k")
    result = api.get("/ai/result", key="k").json()
    assert (result["status"], result["error_code"]) == ("failed", "tool_error")
    [only] = result["result"]["actions"]
    assert (only["ok"], only["policy_reason"], only["result"]["error"]) == (False, "tool_error", "tool_error")


def test_a_disabled_agents_run_fails_at_once_and_is_not_charged(api: Api) -> None:
    api.post(f"/agents/{AGENT}/disable", reason="odd")
    answer = ask(api, SEND).json()
    assert (answer["ok"], answer["status"], answer["error_code"], answer["charged"]) == (
        False,
        "failed",
        "policy_blocked",
        0,
    )
    assert api.usage("ai")["usage"] == 0


def test_the_switch_stops_a_queued_run_of_actions(api: Api) -> None:
    ask(api, SEND)
    assert api.post(f"/agents/{AGENT}/disable").json()["stopped_queued"] == 1
    assert api.get("/ai/result", key="k").json()["error_code"] == "policy_blocked"


@pytest.mark.parametrize("dry_run", [True, "true", "TRUE", 1, "1", "yes"])
def test_a_dry_run_shows_each_decision_and_calls_nothing(
    api: Api, work: Work, tool: ToolServer, dry_run: Any
) -> None:
    api.post(f"/policies/{AGENT}", blocked_tools=["delete_user"])
    ask(api, DELETE, SEND, {"tool": "nosuch"}, dry_run=dry_run)
    work(api, "k")
    assert api.get("/ai/result", key="k").json()["result"] == {
        "actions": [
            {
                "tool": "delete_user",
                "decision": "blocked",
                "policy_reason": "tool_not_allowed",
                "ok": False,
                "result": None,
            },
            {**LINE, "result": None},
            {
                "tool": "nosuch",
                "decision": "blocked",
                "policy_reason": "tool_not_found",
                "ok": False,
                "result": None,
            },
        ],
        "dry_run": True,
    }
    assert tool.requests == []
    logs = api.get(f"/agents/{AGENT}/logs", decision="dry_run").json()
    assert [(row["tool"], row["allowed"], row["policy_reason"], row["spend_usd"]) for row in logs] == [
        ("nosuch", False, "tool_not_found", 0),
        ("send_email", True, "within_budget", 0),
        ("delete_user", False, "tool_not_allowed", 0),
    ]
    assert api.get(f"/agents/{AGENT}/logs", decision="executed").json() == []
    metrics = api.get(f"/agents/{AGENT}/metrics").json()
    assert (metrics["total_actions"], metrics["blocked_actions"], metrics["total_spend_usd"]) == (0, 0, 0)


@pytest.mark.parametrize("dry_run", [False, "false", 0, "no", None, ""])
def test_what_says_no_is_no_dry_run(api: Api, work: Work, tool: ToolServer, dry_run: Any) -> None:
    ask(api, SEND, dry_run=dry_run)
    work(api, "k")
    assert "dry_run" not in api.get("/ai/result", key="k").json()["result"]
    assert len(tool.requests) == 1


@pytest.mark.parametrize(
    ("action", "loc"),
    [
        (1, []),
        ("send_email", []),
        (None, []),
        ({}, ["tool"]),
        ({"tool": ""}, ["tool"]),
        ({"tool": "  "}, ["tool"]),
        ({"tool": 1}, ["tool"]),
        ({"tool": "x" * 257}, ["tool"]),
        ({"tool": "x", "args": []}, ["args"]),
        ({"tool": "x", "args": "y"}, ["args"]),
        ({"tool": "x", "args": {"n": 2**53}}, ["args"]),
        ({"tool": "x", "spend_usd": -0.01}, ["spend_usd"]),
        ({"tool": "x", "spend_usd": "1"}, ["spend_usd"]),
        ({"tool": "x", "spend_usd": True}, ["spend_usd"]),
        ({"tool": "x", "spend_usd": 1e10}, ["spend_usd"]),
    ],
)
def test_an_action_that_is_none_is_named_by_its_place(
    new_tenant: NewApi, action: Any, loc: list[str]
) -> None:
    api = new_tenant()
    answer = ask(api, SEND, action)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "metadata", "actions", 1, *loc]
    assert api.rows("runs") == 0


@pytest.mark.parametrize(
    "metadata",
    [
        {"actions": [SEND]},
        {"actions": [SEND], "agent_id": None},
        {"actions": [SEND], "agent_id": "  "},
        {"actions": [SEND], "agent_id": AGENT, "task": "echo"},
        {"actions": [SEND], "agent_id": AGENT, "dry_run": "maybe"},
        {"actions": [SEND], "agent_id": AGENT, "dry_run": 2},
        {"actions": [SEND], "agent_id": AGENT, "dry_run": [True]},
        {"actions": {"tool": "x"}, "agent_id": AGENT},
        {"actions": "send_email", "agent_id": AGENT},
    ],
)
def test_actions_need_an_agent_are_no_other_job_and_are_dry_or_not(
    new_tenant: NewApi, metadata: dict[str, Any]
) -> None:
    api = new_tenant()
    answer = api.post("/ai/run", key="k", metadata=metadata)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", "metadata"]
    assert api.rows("runs") == 0


def test_not_a_number_is_refused(new_tenant: NewApi) -> None:
    body = b'{"key": "k", "metadata": {"agent_id": "a", "actions": [{"tool": "x", "spend_usd": NaN}]}}'
    assert new_tenant().request("POST", "/ai/run", content=body).status_code == 422


@pytest.mark.parametrize("actions", [[], None])
def test_no_actions_are_an_ordinary_run(new_tenant: NewApi, actions: Any) -> None:
    api = new_tenant()
    assert api.post("/ai/run", key="k", metadata={"actions": actions}).json()["status"] == "acquired"
    api.work("k", {"done": True})


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.STARTER])
def test_a_plan_without_tools_has_no_actions(new_tenant: NewApi, plan: Plan) -> None:
    api = new_tenant(plan)
    answer = ask(api, SEND)
    assert answer.status_code == 403
    assert answer.json()["detail"]["error"] == "feature_not_available"
    assert api.rows("runs") == 0


def test_the_job_of_actions_can_not_be_asked_for_by_name(new_tenant: NewApi) -> None:
    answer = new_tenant().post("/ai/run", key="k", metadata={"task": runs.ACTIONS, "agent_id": AGENT})
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "unknown_task")


# From Python


@pytest.fixture
def jobs(settings: Settings, db: Database) -> Iterator[Jobs]:
    db.run(claims.announce, [job.spec("q") for job in builtin(Runtime.of(settings))])
    jobs = Jobs(settings, tenant="t")
    yield jobs
    jobs.close()


def test_actions_are_enqueued_as_the_job_that_makes_them(jobs: Jobs, db: Database) -> None:
    metadata = {"agent_id": AGENT, "actions": [{"tool": "nosuch"}]}
    assert jobs.enqueue(runs.ACTIONS, key="k", metadata=metadata).status == "acquired"
    run = db.run(runs.find, "t", "k")
    assert db.run(claims.claim, run.id, runs.ACTIONS, 15.0, None) is not None
    for job, given in (
        (runs.ACTIONS, {"agent_id": AGENT}),
        ("echo", metadata),
        (runs.ACTIONS, {"actions": [1]}),
    ):
        with pytest.raises(EnqueueError, match="actions"):
            jobs.enqueue(job, key="other", metadata=given)


def test_enqueueing_actions_needs_a_plan_that_has_tools(settings: Settings, db: Database, jobs: Jobs) -> None:
    free = Jobs(settings.model_copy(update={"default_plan": "starter"}), tenant="small")
    with pytest.raises(FeatureNotAvailable):
        free.enqueue(runs.ACTIONS, key="k", metadata={"agent_id": AGENT, "actions": [SEND]})
    free.close()
