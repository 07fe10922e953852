"""Governed calls as a worker carries them out, in this process: a real database, and a real tool that counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.claims import make_context
from support.tool_server import ToolServer, ok, refused_url, status

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.tools import ToolRequest
from onceonly_jobs.domain.governance import Code
from onceonly_jobs.domain.states import RunState
from onceonly_jobs.services import calls, governance, insights, runs, tools
from onceonly_jobs.services.calls import Wanted
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.handlers import builtin
from onceonly_jobs.worker.lifecycle import Fate, run_job
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.tool_job import _may_repeat

AGENT = "bot"
WEEK_S = 604_800


class Workshop:
    """One tenant with one tool, and a worker's runtime."""

    def __init__(self, settings: Settings, db: Database, caller: Caller, tool: ToolServer) -> None:
        given = {"tool_allow": "loopback", "secret_key": "the key of this server, at least 16 long"}
        self.settings = settings.model_copy(update=given)
        self.db, self.caller, self.tool = db, caller, tool
        self.runtime = Runtime.of(self.settings)
        auth = {"type": "hmac_sha256", "secret": "a shared secret"}
        request = ToolRequest.model_validate({"name": "send_email", "url": tool.url, "auth": auth})
        db.run(tools.put, caller, request, tools.vault_of(self.settings))

    def ask(self, **args: Any) -> Judged:
        wanted = Wanted(
            agent_id=AGENT, tool="send_email", args=args, spend_usd=0.5, queue="q", publish_grace_s=0
        )
        return self.db.run(calls.judge, self.caller, wanted)

    def work(self, judged: Judged) -> Fate:
        """Do what a worker does with the call's message."""
        return run_job(self.runtime, builtin(self.runtime)[calls.JOB], judged.run.id).fate

    def switch(self, on: bool) -> None:
        request = SwitchRequest()
        if on:
            self.db.run(governance.enable, self.caller, AGENT, request)
        else:
            self.db.run(governance.disable, self.caller, AGENT, request, WEEK_S)

    def spent_usd(self) -> float:
        return self.db.run(governance.metrics, self.caller, AGENT, "day").spend_micro_usd / 1e6

    def timeline(self, run_id: str) -> list[tuple[str, str | None, str | None, str | None]]:
        events = self.db.run(insights.timeline, self.caller, run_id, 50, 0)[1]
        return [(event.type, event.status, event.tool, event.message) for event in events]


@pytest.fixture
def workshop(settings: Settings, db: Database, caller: Caller) -> Iterator[Workshop]:
    with ToolServer() as tool:
        made = Workshop(settings, db, caller, tool)
        yield made
        made.runtime.database.close()


def test_a_call_that_its_tool_refused_is_not_repeated_after_the_switch(workshop: Workshop) -> None:
    """The next heartbeat, which would say so, is seconds away."""
    judged = workshop.ask(to="a")

    def refuse_and_switch_off(handler: Any) -> None:
        workshop.switch(on=False)
        status(503)(handler)

    workshop.tool.script(refuse_and_switch_off, ok())
    workshop.work(judged)
    assert len(workshop.tool.requests) == 1
    run = workshop.db.run(runs.find, workshop.caller.tenant_id, judged.run.key)
    assert (run.state, run.error_code) == (RunState.FAILED, "policy_blocked")


def test_a_call_is_not_repeated_while_nobody_can_say_whether_it_may() -> None:
    nowhere = refused_url().replace("http", "postgresql")
    runtime = Runtime.of(Settings.load(database_url=nowhere, broker_url="redis://127.0.0.1:1"))
    assert not _may_repeat(make_context(), runtime)


def test_a_call_that_may_go_on_is_repeated(workshop: Workshop) -> None:
    workshop.tool.script(status(503))
    assert workshop.work(workshop.ask(to="a")) is Fate.COMPLETED
    assert len(workshop.tool.requests) == 2


def test_a_queued_call_that_was_switched_off_is_a_new_call_after_the_switch(workshop: Workshop) -> None:
    first = workshop.ask(to="a")
    workshop.switch(on=False)
    assert workshop.ask(to="a").code is Code.AGENT_DISABLED
    assert workshop.spent_usd() == 0
    assert workshop.work(first) is Fate.NOT_CLAIMED, "its message comes late"
    workshop.switch(on=True)
    again = workshop.ask(to="a")
    assert again.code is Code.OK
    assert workshop.work(again) is Fate.COMPLETED
    assert workshop.ask(to="a").code is Code.IDEMPOTENCY
    assert len(workshop.tool.requests) == 1
    assert workshop.spent_usd() == 0.5
    decisions = workshop.db.run(governance.logs, workshop.caller, AGENT, limit=9)
    assert [(entry.decision, entry.outcome) for entry in reversed(decisions)] == [
        ("executed", "failed"),
        ("blocked", None),
        ("executed", "completed"),
        ("dedup", None),
    ]


def test_a_running_call_that_was_switched_off_answers_its_repeats(workshop: Workshop) -> None:
    """It has been sent: a repeat after the switch must not send it again."""

    def switch_off(handler: Any) -> None:
        workshop.switch(on=False)
        ok()(handler)

    workshop.tool.script(switch_off)
    first = workshop.ask(to="a")
    assert workshop.work(first) is Fate.LOST
    workshop.switch(on=True)
    again = workshop.ask(to="a")
    assert again.code is Code.IDEMPOTENCY
    assert (again.run.state, again.run.error_code) == (RunState.FAILED, "policy_blocked")
    assert len(workshop.tool.requests) == 1
    assert workshop.spent_usd() == 0.5


@pytest.mark.parametrize(
    ("answer", "result", "message"),
    [(ok(), "ok", None), (status(400), "error", "the tool answered 400")],
)
def test_a_call_is_told_on_the_timeline_that_its_caller_named(
    workshop: Workshop, answer: Any, result: str, message: str | None
) -> None:
    workshop.tool.script(answer)
    judged = workshop.ask(run_id="order-7", to="a")
    workshop.work(judged)
    ended = ("completed", None) if result == "ok" else ("failed", "tool_error")
    told = workshop.timeline("order-7")
    assert [event for event in told if event[0] != "tool_result"] == [
        ("tool_call", "start", "send_email", None),
        ("run_started", "started", "send_email", None),
        ("run_finished", ended[0], "send_email", ended[1]),
    ]
    [(_, outcome, tool, why)] = [event for event in told if event[0] == "tool_result"]
    assert told[-2][0] == "tool_result"
    assert (outcome, tool) == (result, "send_email")
    assert (why is None) if message is None else message in str(why)
    assert workshop.timeline(judged.run.key) == []


def test_a_refused_call_is_told_there_too_and_nowhere_else(workshop: Workshop) -> None:
    workshop.switch(on=False)
    workshop.ask(run_id="order-7")
    workshop.ask(to="a")
    assert workshop.timeline("order-7") == [("tool_result", "blocked", "send_email", "agent_disabled")]
    listed = workshop.db.run(insights.latest_timelines, workshop.caller, "", 50, 0)[1]
    assert [timeline.run_id for timeline in listed] == ["order-7"]


def test_without_a_run_id_a_call_is_told_under_its_key(workshop: Workshop) -> None:
    judged = workshop.ask(to="a")
    workshop.work(judged)
    assert [event[0] for event in workshop.timeline(judged.run.key)] == [
        "tool_call",
        "run_started",
        "tool_result",
        "run_finished",
    ]
    assert workshop.db.run(runs.find, workshop.caller.tenant_id, judged.run.key).run_id == judged.run.key
