"""Settings, connections, pickling, closing, decorators and blocks, over a transport that answers in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from support.small_server import Server

from onceonly_jobs.client import Lease, OnceOnly, create_client, current_lease
from onceonly_jobs.client.decorators import idempotent, idempotent_ai
from onceonly_jobs.client.exceptions import ConfigError, LeaseLost, RunFailed
from onceonly_jobs.client.settings import DEFAULT_BASE_URL

PATIENCE_S = 20.0


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> OnceOnly:
    return server.client()


# Settings


def test_settings_come_from_arguments_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="ONCEONLY_API_KEY"):
        OnceOnly()
    for name, value in {
        "API_KEY": "env",
        "BASE_URL": "http://env:1",
        "TTL": "7",
        "AGENT_ID": "agent",
    }.items():
        monkeypatch.setenv(f"ONCEONLY_{name}", value)
    found = OnceOnly().settings
    assert (found.api_key, found.base_url, found.ttl, found.agent_id) == (
        "env",
        "http://env:1/v1",
        7,
        "agent",
    )
    given = OnceOnly("key", "https://host/other/", ttl=9, agent_id="mine").settings
    assert (given.api_key, given.base_url, given.ttl, given.agent_id) == (
        "key",
        "https://host/other",
        9,
        "mine",
    )
    monkeypatch.setenv("ONCEONLY_TTL", "soon")
    with pytest.raises(ConfigError, match="ONCEONLY_TTL"):
        OnceOnly()


def test_without_a_base_url_nobody_elses_server_gets_the_key() -> None:
    assert create_client("key").base_url == DEFAULT_BASE_URL == "http://127.0.0.1:8080/v1"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://host", "/v1", "http://"])
def test_a_base_url_that_is_none_is_told_so(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OnceOnly("key", url)


def test_the_clients_ttl_is_for_calls_without_one(server: Server) -> None:
    client = OnceOnly("k", "http://test", transport=httpx.MockTransport(server.answer), ttl=99)
    client.check_lock("a")
    client.check_lock("b", 5)
    client.ai.lease("c")
    client.ai.run_fn("d", lambda: None)
    idempotent(client)(len)("e")
    assert [body.get("ttl") for path, body in server.seen if path != "/ai/complete"] == [99, 5, 99, 99, 99]


def test_the_decorators_own_ttls(client: OnceOnly, server: Server) -> None:
    idempotent(client, key_func=lambda: "x")(lambda: None)()
    idempotent_ai(client, key="y")(lambda: None)()
    assert [body.get("ttl") for _, body in server.seen][:2] == [86_400, 300]


def test_a_repr_does_not_show_the_key() -> None:
    client = OnceOnly("once_live_very_secret_a1b2")
    assert "secret" not in repr(client) + repr(client.settings)
    assert "a1b2" in repr(client)


# Connections


def test_a_client_is_pickled_without_its_connections() -> None:
    client = OnceOnly("key", "http://test", timeout=3, fail_open=False, max_retries_429=7, ttl=5)
    client._connections.sync()
    again = pickle.loads(pickle.dumps(client))
    assert again.settings == client.settings
    assert again._connections is not client._connections
    assert again.ai is not client.ai


def test_a_client_with_somebody_elses_connections_is_not_pickled(client: OnceOnly) -> None:
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(client)


def test_closing_is_idempotent_and_not_the_end() -> None:
    async def both() -> None:
        async with OnceOnly("key") as client:
            client._connections.of_loop()
            client._connections.sync()
        await client.aclose()

    with OnceOnly("key") as client:
        first = client._connections.sync()
    client.close()
    assert first.is_closed
    assert client._connections.sync() is not first
    client.close()
    asyncio.run(both())


def test_a_given_client_is_not_closed(server: Server) -> None:
    with httpx.Client(transport=httpx.MockTransport(server.answer)) as own:
        with OnceOnly("key", "http://test", sync_client=own) as client:
            client.check_lock("k")
        assert not own.is_closed


def test_a_given_client_keeps_its_own_address_and_key() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    transport = httpx.MockTransport(answer)
    bare = httpx.Client(transport=transport)
    OnceOnly("key", "http://ours/v1", sync_client=bare).me()
    set_up = httpx.Client(
        transport=transport, base_url="http://theirs/v9", headers={"Authorization": "Bearer own"}
    )
    OnceOnly("key", "http://ours/v1", sync_client=set_up).me()
    assert [(str(r.url), r.headers["Authorization"]) for r in seen] == [
        ("http://ours/v1/me", "Bearer key"),
        ("http://theirs/v9/me", "Bearer own"),
    ]


def test_each_event_loop_has_its_own_connections(client: OnceOnly) -> None:
    async def use() -> httpx.AsyncClient:
        assert client._connections.of_loop() is client._connections.of_loop()
        await client.check_lock_async("k")
        return client._connections.of_loop()

    assert asyncio.run(use()) is not asyncio.run(use())


def test_threads_share_one_client(client: OnceOnly) -> None:
    seen: list[httpx.Client] = []
    threads = [threading.Thread(target=lambda: seen.append(client._connections.sync())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, seen))) == 1


# Decorators


class Report(BaseModel):
    total: int


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str]


def once(client: OnceOnly, function: Callable[..., Any]) -> Callable[..., Any]:
    return idempotent_ai(client, key_fn=lambda *_: "k", unwrap=True)(function)


def returning(value: Any, annotation: Any) -> Callable[..., Any]:
    def function() -> Any:
        return value

    function.__annotations__["return"] = annotation
    return function


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Report(total=1), Report),
        (Point(1, ["a"]), Point),
        ([Report(total=1)], list[Report]),
        ({"a": 1}, dict[str, int]),
        ({"value": 1, "wrapped": True}, dict[str, Any]),
        ({1, 2}, set[int]),
        ((1, "a"), tuple[int, str]),
        (b"\xc3\xa9", bytes),
        ("text", str),
        (7, int),
        (None, None),
        (None, Report | None),
    ],
    ids=repr,
)
def test_a_replayed_value_is_the_annotated_type(client: OnceOnly, value: Any, annotation: Any) -> None:
    function = once(client, returning(value, annotation))
    assert function() is value
    again = function()
    assert again == value
    assert type(again) is type(value)


def test_coroutines_are_replayed_too(client: OnceOnly) -> None:
    @idempotent_ai(client, key="k", unwrap=True)
    async def report(total: int) -> Report:
        await asyncio.sleep(0)
        return Report(total=total)

    async def twice() -> list[Report]:
        return [await report(1), await report(2)]

    assert asyncio.iscoroutinefunction(report)
    assert asyncio.run(twice()) == [Report(total=1)] * 2


def test_a_replayed_value_without_annotation_is_plain_json(client: OnceOnly) -> None:
    function = once(client, lambda: Report(total=1))
    function()
    assert function() == {"total": 1}


def test_a_stored_failure_is_raised_where_a_value_is_asked_for(client: OnceOnly) -> None:
    def broken() -> int:
        raise KeyError("first")

    function = once(client, broken)
    with pytest.raises(KeyError):
        function()
    with pytest.raises(RunFailed, match="fn_error") as caught:
        function()
    assert caught.value.error_code == "fn_error"


def test_objects_are_stored_as_without_unwrap_so_that_both_can_be_mixed(
    client: OnceOnly, server: Server
) -> None:
    once(client, returning(Report(total=1), Report))()
    assert server.stored()["result"] == {"total": 1}
    plain = idempotent_ai(client, key="k")(lambda: pytest.fail("must not run"))
    assert plain().result == {"total": 1}


def test_a_decorated_function_keeps_its_name_and_kind(client: OnceOnly) -> None:
    @idempotent(client)
    async def send(to: str) -> None:
        """Send it."""

    assert (send.__name__, send.__doc__, asyncio.iscoroutinefunction(send)) == ("send", "Send it.", True)


def test_idempotent_ai_needs_a_key(client: OnceOnly) -> None:
    with pytest.raises(ValueError, match="key"):
        idempotent_ai(client)


def test_an_argument_without_a_stable_form_stops_before_anything_is_asked(
    client: OnceOnly, server: Server
) -> None:
    @idempotent(client)
    def charge(order: object) -> None: ...

    with pytest.raises(TypeError, match="pass key_func="):
        charge(object())
    assert server.seen == []


# Blocks


def test_a_lock_block(client: OnceOnly) -> None:
    with client.lock("k", ttl=60) as first, client.lock("k", ttl=60) as second:
        assert (first.acquired, first.duplicate, first.key) == (True, False, "k")
        assert (second.acquired, second.duplicate) == (False, True)


def test_a_lease_block_stores_its_result(client: OnceOnly, server: Server) -> None:
    with client.lease("k", ttl=60) as lease:
        assert lease.acquired
        assert current_lease() is lease
        lease.set_result(Report(total=3))
    assert current_lease() is None
    assert server.stored() == {"key": "k", "lease_id": "lease_1", "result": {"total": 3}}
    assert lease.outcome is not None
    assert lease.outcome.ok
    with client.lease("k") as later:
        assert not later.acquired
        assert later.outcome is not None
        assert later.outcome.result == {"total": 3}
    assert server.paths.count("/ai/complete") == 1


def test_a_lease_block_that_raises_is_a_stored_failure(client: OnceOnly, server: Server) -> None:
    with pytest.raises(KeyError), client.lease("k", error_code="broken"):
        raise KeyError("mine")
    assert server.stored()["error_code"] == "broken"


def test_an_interrupted_block_leaves_the_lease_to_run_out(client: OnceOnly, server: Server) -> None:
    with pytest.raises(KeyboardInterrupt), client.lease("k"):
        raise KeyboardInterrupt
    assert server.paths == ["/ai/lease"]


async def in_async_blocks(client: OnceOnly) -> Lease:
    async with client.lock("k") as lock:
        assert lock.acquired
    async with client.lease("k") as lease:
        assert current_lease() is lease
        lease.set_result({"n": 1})
    with pytest.raises(KeyError):
        async with client.lease("broken"):
            raise KeyError
    return lease


def test_blocks_are_async_too(client: OnceOnly, server: Server) -> None:
    lease = asyncio.run(in_async_blocks(client))
    assert lease.outcome is not None
    assert lease.outcome.result == {"n": 1}
    assert server.done["broken"]["error_code"] == "block_error"


# Losing a lease


def test_a_running_function_is_told(client: OnceOnly, server: Server) -> None:
    told = threading.Event()

    def work() -> int:
        lease = current_lease()
        assert lease is not None
        assert lease.wait_lost(PATIENCE_S)
        assert told.wait(PATIENCE_S)
        lease.check()
        return 1

    server.lose_at = 2
    with pytest.raises(LeaseLost):
        client.ai.run_fn("k", work, extend_every=0.01, on_lost=lambda lease: told.set())
    assert not {"/ai/fail", "/ai/complete"} & set(server.paths)


def test_a_running_coroutine_is_cancelled(client: OnceOnly, server: Server) -> None:
    cleaned: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            cleaned.append("up")

    async def main() -> None:
        with pytest.raises(LeaseLost):
            await client.ai.run_fn_async("k", work, extend_every=0.01)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # nothing of the cancellation is left

    server.lose_at = 1
    asyncio.run(main())
    assert cleaned == ["up"]


def test_an_async_block_is_cancelled(client: OnceOnly, server: Server) -> None:
    async def main() -> None:
        async with client.lease("k", extend_every=0.01):
            await asyncio.sleep(PATIENCE_S)

    server.lose_at = 1
    with pytest.raises(LeaseLost):
        asyncio.run(main())


def test_a_cancellation_from_outside_stays_one(client: OnceOnly, server: Server) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def work() -> None:
            started.set()
            await asyncio.sleep(PATIENCE_S)

        running = asyncio.create_task(client.ai.run_fn_async("k", work))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert server.paths == ["/ai/lease"], "the lease runs out, as after a crash"


def test_a_coroutine_that_takes_no_notice_gets_no_result_stored(client: OnceOnly, server: Server) -> None:
    async def stubborn() -> int:
        try:
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return 1

    async def main() -> None:
        with pytest.raises(LeaseLost):
            await client.ai.run_fn_async("k", stubborn, extend_every=0.01)
        await asyncio.sleep(0)

    server.lose_at = 1
    asyncio.run(main())
    assert server.done == {}


def test_heartbeats_end_with_the_work(client: OnceOnly, server: Server) -> None:
    def work() -> None:
        assert server.extended.wait(PATIENCE_S)

    client.ai.run_fn("k", work, extend_every=0.01)
    deadline = time.monotonic() + PATIENCE_S
    while any(thread.name == "onceonly-heartbeat" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    counted = server.extends
    client.check_lock("k")
    assert server.extends == counted
