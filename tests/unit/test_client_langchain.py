"""LangChain tools that act once per input, with the real library."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, InjectedToolArg, ToolException, tool
from support.small_server import Server

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.client.exceptions import RunFailed
from onceonly_jobs.integrations.langchain import make_idempotent_tool


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> OnceOnly:
    return server.client()


@pytest.fixture
def ran() -> list[int]:
    return []


@pytest.fixture
def refund(ran: list[int]) -> BaseTool:
    @tool
    def refund(order: int, currency: str = "EUR", user: Annotated[Any, InjectedToolArg] = None) -> str:
        """Give the money back."""
        ran.append(order)
        if order < 0:
            raise ToolException("no such order")
        return f"refunded {order} {currency}"

    assert isinstance(refund, BaseTool)
    return refund


def asked(order: int, call_id: str, **more: Any) -> dict[str, Any]:
    """A tool call as a model's answer carries it."""
    return {"type": "tool_call", "name": "refund", "id": call_id, "args": {"order": order, **more}}


def test_a_model_that_asks_twice_gets_it_once(client: OnceOnly, refund: BaseTool, ran: list[int]) -> None:
    guarded = make_idempotent_tool(refund, client=client)
    first, second = guarded.invoke(asked(1, "call_a")), guarded.invoke(asked(1, "call_b"))
    assert isinstance(first, ToolMessage)
    assert isinstance(second, ToolMessage)
    assert (first.content, first.tool_call_id) == ("refunded 1 EUR", "call_a")
    assert "skipped" in str(second.content)
    assert second.tool_call_id == "call_b"
    assert guarded.invoke(asked(2, "call_a")).content == "refunded 2 EUR"
    assert ran == [1, 2]


def test_a_repeat_may_get_what_the_first_call_returned(
    client: OnceOnly, refund: BaseTool, ran: list[int]
) -> None:
    guarded = make_idempotent_tool(refund, client=client, on_repeat="replay", ttl=60)
    answers = [guarded.invoke(asked(1, "call_a")), guarded.invoke(asked(1, "call_b"))]
    assert [answer.content for answer in answers] == ["refunded 1 EUR"] * 2
    assert [answer.tool_call_id for answer in answers] == ["call_a", "call_b"]
    assert guarded.invoke({"order": 1}) == guarded.run({"order": 1}) == "refunded 1 EUR"
    assert ran == [1]


@pytest.mark.parametrize("on_repeat", ["skip", "replay"])
def test_async_calls_are_guarded_too(
    client: OnceOnly, refund: BaseTool, ran: list[int], on_repeat: Any
) -> None:
    guarded = make_idempotent_tool(refund, client=client, on_repeat=on_repeat)

    async def both() -> list[Any]:
        return [await guarded.ainvoke(asked(1, "a")), await guarded.arun({"order": 1})]

    first, second = asyncio.run(both())
    assert first.content == "refunded 1 EUR"
    assert second == "refunded 1 EUR" or "skipped" in second
    assert ran == [1]


def test_what_the_framework_injects_is_no_part_of_the_input(
    client: OnceOnly, server: Server, refund: BaseTool, ran: list[int]
) -> None:
    guarded = make_idempotent_tool(refund, client=client)
    guarded.invoke({"order": 1, "user": object()})
    guarded.invoke({"order": 1, "user": object()})
    assert ran == [1]
    assert len({body["key"] for _, body in server.seen}) == 1


def test_the_model_sees_the_same_tool(client: OnceOnly, refund: BaseTool) -> None:
    guarded = make_idempotent_tool(refund, client=client, meta={"team": "billing"})
    assert isinstance(guarded, BaseTool)
    assert (guarded.name, guarded.description, guarded.args) == (refund.name, refund.description, refund.args)
    assert guarded.tool_call_schema.model_json_schema() == refund.tool_call_schema.model_json_schema()  # type: ignore[union-attr]


def test_the_lock_says_which_tool_it_was(client: OnceOnly, server: Server, refund: BaseTool) -> None:
    make_idempotent_tool(refund, client=client, key_prefix="p", ttl=9, meta={"team": "billing"}).invoke(
        {"order": 1}
    )
    [(_, body)] = server.seen
    assert body["key"].startswith("p:refund:")
    assert (body["ttl"], body["metadata"]) == (9, {"tool": "refund", "team": "billing"})


def test_a_failure_is_not_replayed_as_a_result(client: OnceOnly, server: Server, refund: BaseTool) -> None:
    guarded = make_idempotent_tool(refund, client=client, on_repeat="replay")
    with pytest.raises(ToolException, match="no such order"):
        guarded.invoke(asked(-1, "a"))
    with pytest.raises(RunFailed):
        guarded.invoke(asked(-1, "b"))
    assert server.stored()["error_code"] == "fn_error"


def test_a_tool_that_shows_its_errors_goes_on_showing_them(
    client: OnceOnly, server: Server, refund: BaseTool
) -> None:
    refund.handle_tool_error = True
    guarded = make_idempotent_tool(refund, client=client, on_repeat="replay")
    assert guarded.invoke(asked(-1, "a")).content == "no such order"
    assert "fn_error" in guarded.invoke(asked(-1, "b")).content
    assert server.stored()["error_code"] == "fn_error"


def test_only_tools_are_wrapped(client: OnceOnly) -> None:
    with pytest.raises(TypeError, match="BaseTool"):
        make_idempotent_tool(print, client=client)
