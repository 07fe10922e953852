"""Hints: they wake who waits, they cost nobody an error, and nothing of a waiter stays behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.hints import HintListener, HintSender, decode, encode
from onceonly_jobs.local.redis import EmbeddedRedis

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def hints_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture
def hint_settings(hints_redis: EmbeddedRedis) -> Settings:
    return Settings.load(redis_url=hints_redis.url)


@pytest.fixture
async def listener(hint_settings: Settings) -> AsyncIterator[HintListener]:
    listener = HintListener(hint_settings)
    await listener.start()
    async with asyncio.timeout(PATIENCE_S):
        await listener.connected.wait()
    yield listener
    await listener.aclose()


async def test_a_hint_wakes_those_who_wait_for_its_key(
    listener: HintListener, hint_settings: Settings
) -> None:
    sender = HintSender(hint_settings)
    async with (
        listener.waiting("t", "k") as one,
        listener.waiting("t", "k") as two,
        listener.waiting("u", "k") as other,
        asyncio.timeout(PATIENCE_S),
    ):
        sender.finished("t", "k")
        await one.wait()
        await two.wait()
        assert not other.is_set()
    sender.close()


async def test_the_async_face_sends_too(listener: HintListener) -> None:
    async with listener.waiting("t", "k") as event, asyncio.timeout(PATIENCE_S):
        await listener.finished("t", "k")
        await event.wait()


async def test_no_waiter_is_left_behind(listener: HintListener) -> None:
    async def wait() -> None:
        async with listener.waiting("t", "k") as event:
            await event.wait()

    tasks = [asyncio.create_task(wait()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert listener._waiting == {}


async def test_a_lost_redis_is_found_again_and_nobody_misses_a_hint(
    listener: HintListener, hints_redis: EmbeddedRedis, hint_settings: Settings
) -> None:
    async with listener.waiting("t", "k") as event, asyncio.timeout(PATIENCE_S):
        await asyncio.to_thread(hints_redis.kill)
        while listener.connected.is_set():  # noqa: ASYNC110 - it is cleared, and nobody waits for that
            await asyncio.sleep(0.01)
        HintSender(hint_settings).finished("t", "k")  # nobody hears it
        await listener.finished("t", "other")
        assert not event.is_set()
        await asyncio.to_thread(hints_redis.start)
        await event.wait()  # woken to look again, since it may have missed one


async def test_without_redis_there_are_no_hints_and_no_errors() -> None:
    settings = Settings.load(broker_url="amqp://localhost")
    HintSender(settings).finished("t", "k")
    listener = HintListener(settings)
    await listener.start()
    async with listener.waiting("t", "k") as event, asyncio.timeout(PATIENCE_S):
        await listener.finished("t", "k")  # those of this process are woken all the same
        await event.wait()
    await listener.aclose()


async def test_a_silent_redis_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings.load(redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        listener = HintListener(settings)
        await listener.start()
        await asyncio.to_thread(HintSender(settings).finished, "t", "k")
        await listener.finished("t", "k")
        await listener.aclose()


def test_what_is_no_hint_is_ignored() -> None:
    assert decode(encode("t", "k\u2028").encode()) == ("t", "k\u2028")
    assert [decode(data) for data in (b"", b"[]", b"{}", b"\xff", b'{"t": 1}')] == [None] * 5


async def test_a_listener_ends_though_a_library_swallowed_that_it_should(
    hint_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, swallowed = asyncio.Event(), 0

    async def swallow(self: HintListener, url: str) -> None:
        nonlocal swallowed
        try:
            begun.set()
            await asyncio.sleep(PATIENCE_S * 2)
        except asyncio.CancelledError:
            if swallowed:
                raise
            swallowed += 1

    monkeypatch.setattr(HintListener, "_listen", swallow)
    listener = HintListener(hint_settings)
    await listener.start()
    await begun.wait()
    async with asyncio.timeout(PATIENCE_S) as patience:
        await listener.aclose()
    assert not patience.expired()
    assert swallowed == 1
