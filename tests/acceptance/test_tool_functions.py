"""Python functions as tools, with a real worker: governed, deduplicated and held like any tool."""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import Any

import pytest
from support.clients import unique
from support.worker_system import System

from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.contracts.tools import ToolAuth, ToolRequest
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.jobs import Jobs
from onceonly_jobs.services import account, calls, governance, tools
from onceonly_jobs.services.calls import Wanted
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.vault import Vault

pytestmark = pytest.mark.timeout(180)


class Agent:
    """An agent of a tenant's own, and its calls."""

    def __init__(self, system: System, caller: Caller, name: str) -> None:
        self.system, self.caller, self.name = system, caller, name
        self.witness = system.directory / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.witness"

    def policy(self, **fields: Any) -> None:
        self.system.db.run(governance.set_policy, self.caller, self.name, PolicyRequest(**fields))

    def judge(self, tool: str, spend_usd: float = 0, **args: Any) -> Judged:
        wanted = Wanted(
            agent_id=self.name,
            tool=tool,
            args=args,
            spend_usd=spend_usd,
            queue=self.system.settings.default_queue,
            publish_grace_s=0,
        )
        return self.system.db.run(calls.judge, self.caller, wanted)

    def call(
        self, tool: str, spend_usd: float = 0, *, ends: str = "completed", **args: Any
    ) -> dict[str, Any]:
        judged = self.judge(tool, spend_usd, **args)
        assert judged.code is Code.OK
        assert judged.run is not None
        row = self.system.state(judged.run.key, "completed", "failed", "unknown")
        assert row["state"] == ends, row
        return row

    def breaking(self, tool: str, how: str, *, ends: str, **args: Any) -> dict[str, Any]:
        return self.call(tool, 0.5, ends=ends, how=how, witness=str(self.witness), **args)

    def calls(self) -> int:
        return len(self.witness.read_text().splitlines())

    def spent(self) -> int:
        query = (
            "SELECT day_spend_micro_usd AS spent FROM agents WHERE tenant_id = :tenant AND agent_id = :agent"
        )
        (row,) = self.system.rows(query, tenant=self.caller.tenant_id, agent=self.name)
        return int(row["spent"])


@pytest.fixture
def agent(serving: System, request: pytest.FixtureRequest) -> Agent:
    tenant = unique("tenant")
    serving.db.run(account.ensure_tenant, tenant, Plan.AGENCY)
    caller = serving.db.run(account.authenticate, serving.db.run(account.create_key, tenant).api_key)
    return Agent(serving, caller, request.node.name)


def test_a_function_is_called_with_checked_arguments_and_once(agent: Agent) -> None:
    assert agent.call("add", a="2", b=3)["result"] == {"data": 5}
    assert agent.call("add", a=2, run_id=f"timeline {agent.name}")["result"] == {"data": 3}
    assert agent.judge("add", a="2", b=3).code is Code.IDEMPOTENCY


def test_a_function_is_told_of_its_call_and_tells_its_cost(agent: Agent) -> None:
    row = agent.call("told", 0.5, path="/tmp/x", run_id="timeline")
    told = row["result"]
    assert (told["agent"], told["run_id"], told["path"]) == (agent.name, "timeline", "x")
    assert told["key"] == calls.idempotency_key(agent.caller.tenant_id, row["key"], row["first_seen_at"])
    assert agent.spent() == 250_000


@pytest.mark.parametrize("args", [{}, {"a": "x"}, {"a": 1, "c": 2}, {"a": None}])
def test_wrong_arguments_call_nothing_and_cost_nothing(agent: Agent, args: dict[str, Any]) -> None:
    row = agent.call("add", 0.5, ends="failed", **args)
    assert (row["error_code"], row["repeatable"]) == ("tool_error", True)
    assert row["result"]["message"].startswith("wrong arguments: ")
    assert agent.spent() == 0


def test_nobody_passes_for_another_agent(agent: Agent) -> None:
    row = agent.call("told", ends="failed", path="x", call={"agent_id": "root"})
    assert "call: Extra inputs" in row["result"]["message"]


@pytest.mark.parametrize("what", ["object", "nan", "large"])
def test_what_was_done_is_done_though_its_result_can_not_be_kept(agent: Agent, what: str) -> None:
    result = agent.call("returns_tool", what=what)["result"]
    assert result["truncated"] is True
    assert len(result["data"]) <= 4096


def test_the_policy_holds_for_functions(agent: Agent) -> None:
    agent.policy(blocked_tools=["add"])
    assert agent.judge("add", a=1).code is Code.EXPLICITLY_BLOCKED
    assert agent.judge("subtract", a=1).code is Code.NOT_FOUND
    agent.policy(blocked_tools=None, max_calls_per_tool={"add": 1})
    agent.call("add", a=1)
    assert agent.judge("add", a=2).code is Code.CALLS_PER_TOOL


def test_a_run_of_actions_calls_functions(agent: Agent) -> None:
    actions = [{"tool": "add", "args": {"a": n}} for n in (1, 2, 1)]
    metadata = {"agent_id": agent.name, "actions": actions}
    with closing(Jobs(agent.system.settings, tenant=agent.caller.tenant_id)) as jobs:
        jobs.enqueue("onceonly.actions", key=agent.name, metadata=metadata)
    made = agent.system.finished(agent.name)["result"]["actions"]
    assert [(each["decision"], each["result"]) for each in made] == [
        ("executed", {"data": 2}),
        ("executed", {"data": 3}),
        ("dedup", {"data": 2}),
    ]


def test_a_result_too_deep_for_that_of_a_run_of_actions_is_left_out(agent: Agent) -> None:
    metadata = {"agent_id": agent.name, "actions": [{"tool": "returns_tool", "args": {"what": "deep"}}]}
    with closing(Jobs(agent.system.settings, tenant=agent.caller.tenant_id)) as jobs:
        jobs.enqueue("onceonly.actions", key=agent.name, metadata=metadata)
    [made] = agent.system.finished(agent.name)["result"]["actions"]
    assert (made["decision"], made["result"]) == ("executed", {"truncated": True})


def test_a_registered_tool_of_the_same_name_comes_first(agent: Agent) -> None:
    secret = ToolAuth(type="hmac_sha256", secret="a shared secret")
    request = ToolRequest(name="add", url="https://example.com/add", auth=secret)
    agent.system.db.run(tools.put, agent.caller, request, Vault("a key of the server"))
    assert agent.judge("add", a=1).job == calls.JOB


def test_a_function_that_says_it_did_nothing_may_be_called_again(agent: Agent) -> None:
    row = agent.breaking("break_once", "fail", ends="failed")
    assert row["result"]["message"] == "out_of_stock: none left"
    assert agent.judge("break_once", how="fail", witness=str(agent.witness)).code is Code.OK


@pytest.mark.parametrize("how", ["raise", "die", "retry"])
def test_an_irreversible_call_that_broke_off_is_held_and_never_repeated(agent: Agent, how: str) -> None:
    row = agent.breaking("break_once", how, ends="unknown")
    assert agent.calls() == 1
    assert row["reserved_micro_usd"] == agent.spent() == 500_000
    assert agent.judge("break_once", how=how, witness=str(agent.witness)).code is Code.IDEMPOTENCY


@pytest.mark.parametrize(
    ("how", "ends", "called"), [("raise", "failed", 1), ("retry", "completed", 2), ("die", "failed", 2)]
)
def test_an_idempotent_call_is_repeated_as_far_as_its_attempts_go(
    agent: Agent, how: str, ends: str, called: int
) -> None:
    agent.breaking("break_again", how, ends=ends)
    assert agent.calls() == called
    if ends == "failed":
        again = agent.judge("break_again", how=how, witness=str(agent.witness))
        assert again.code is Code.OK, "forgotten: a repeat runs"


@pytest.mark.parametrize(("tool", "ends"), [("break_again", "failed"), ("break_asked", "unknown")])
def test_a_function_that_hangs_is_stopped_at_its_time_limit(agent: Agent, tool: str, ends: str) -> None:
    said = {} if tool == "break_again" else {"said": None}
    row = agent.breaking(tool, "hang", ends=ends, **said)
    assert "time limit" in row["error_message"]
    assert row["repeatable"] is (ends == "failed")


@pytest.mark.parametrize(
    ("said", "state", "spent"),
    [({"receipt": 7}, "completed", 500_000), (False, "failed", 0), (None, "unknown", 500_000)],
)
def test_a_confirmer_settles_what_it_can_tell(agent: Agent, said: Any, state: str, spent: int) -> None:
    row = agent.breaking("break_asked", "raise", ends="unknown", said=said)
    with agent.system.db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET confirm_at = onceonly_now() WHERE id = %s", (row["id"],))
    agent.system.until(lambda: agent.system.row(row["key"])["confirmations"] == 1, "asked")
    if said is not None:
        row = agent.system.state(row["key"], state)
    assert (row["state"], agent.spent()) == (state, spent)
    if state == "completed":
        assert row["result"] == said
