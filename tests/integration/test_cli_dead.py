"""`onceonly-jobs dead` and `client.dead`: as an operator and an app use them, over a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import Command, commands

from onceonly_jobs import ApiError, OnceOnly
from onceonly_jobs.cli import dead as cli
from tests.integration.test_client_schedules import InProcess
from tests.integration.test_contract_dead import fail, kill

if TYPE_CHECKING:
    from tests.integration.conftest import Api


@pytest.fixture
def api(serve: Callable[..., Api]) -> Api:
    """A tenant of a database of its own: these commands see all of it."""
    return serve()


@pytest.fixture
def command(api: Api, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", database_url)
    return commands("dead")


def test_a_dead_letter_from_the_list_to_its_replay_and_its_end(command: Command, api: Api) -> None:
    kill(api, "k", size=3)
    of = ("--tenant", api.tenant_id)
    assert "no paper" in command("list")
    shown = command("show", "k", *of)
    assert '{"size": 3}' in shown
    assert "run_finished" in shown
    assert command("replay", "k", *of).startswith("k: replayed by cli")
    assert "no paper" not in command("list")
    assert "no dead letter 'k'" in command("show", "k", *of, status=2)
    fail(api, "k")
    assert command("discard", "k", "--reason", "sent by hand", *of).startswith("k: discarded by cli")
    assert "not a dead letter" in command("replay", "k", *of, status=2)
    assert api.get("/ai/status", key="k").json()["status"] == "failed"


def test_all_are_replayed_or_discarded_in_batches(
    command: Command, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "BATCH", 2)
    for number in range(5):
        kill(api, f"k{number}")
    assert command("replay", "--all", "--task", "another") == "0 replayed\n"
    assert command("replay", "--all", "--task", "echo") == "5 replayed\n"
    assert command("replay", "--all") == "0 replayed\n"
    for number in range(5):
        fail(api, f"k{number}")
    assert command("discard", "--all", "--tenant", "another") == "0 discarded\n"
    assert command("discard", "--all", "--reason", "stale") == "5 discarded\n"
    assert api.get("/dead").json()["total"] == 0


@pytest.mark.parametrize("what", ["replay", "discard"])
def test_neither_all_nor_one_is_meant_by_accident(command: Command, api: Api, what: str) -> None:
    kill(api, "k")
    assert "give a key, or --all" in command(what, status=2)
    assert "give a key, or --all" in command(what, "--task", "echo", status=2)
    assert "without a key" in command(what, "k", "--all", status=2)
    assert api.get("/dead").json()["total"] == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_dead_letters_through_the_client(api: Api, asynchronous: bool) -> None:
    carrier = InProcess(api)
    client = OnceOnly(api.api_key, "http://test/v1", transport=carrier, async_transport=carrier)

    def call(method: str, *args: Any, **fields: Any) -> Any:
        if asynchronous:
            return asyncio.run(getattr(client.dead, f"{method}_async")(*args, **fields))
        return getattr(client.dead, method)(*args, **fields)

    key = "report/7 ü"
    kill(api, key, agent_id="bot")
    [item] = call("list", task="echo", agent_id="bot", limit=5)["items"]
    assert item["key"] == key
    assert call("list", task="another")["total"] == 0
    assert call("show", key)["metadata"] == {"agent_id": "bot"}
    first = call("replay", key, decision_id=item["decision_id"])
    fail(api, key)
    assert call("replay", key, decision_id=item["decision_id"]) == first
    assert call("discard", key, "sent by hand")["reason"] == "sent by hand"
    with pytest.raises(ApiError) as refused:
        call("replay", key)
    assert refused.value.status_code == 409
