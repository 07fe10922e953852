"""The published SDK under one face: a scenario is written once, and runs over its sync and its async methods."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
from onceonly import OnceOnly

Face = Literal["sync", "async"]
FACES: tuple[Face, ...] = ("sync", "async")

THREADS = 40
PATIENCE_S = 30.0


class Calls(list[tuple[str, str, int]]):
    """The HTTP calls a client made, in order: method, path below /v1, status."""

    def record(self, request: httpx.Request, response: httpx.Response) -> None:
        path = request.url.path.removeprefix("/v1")
        self.append((request.method, path, response.status_code))

    def count(self, path: str) -> int:  # type: ignore[override]
        """How many calls went to this path."""
        return sum(called == path for _, called, _ in self)


class _Recording(httpx.HTTPTransport):
    def __init__(self, calls: Calls) -> None:
        super().__init__(verify=False)
        self._calls = calls

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        self._calls.record(request, response)
        return response


class _AsyncRecording(httpx.AsyncHTTPTransport):
    def __init__(self, calls: Calls) -> None:
        super().__init__(verify=False)
        self._calls = calls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        self._calls.record(request, response)
        return response


class Methods:
    """An object's methods by one name each: `method` in a thread, or `method_async`. Both are awaited."""

    def __init__(self, target: Any, face: Face, pool: ThreadPoolExecutor) -> None:
        self._target, self._face, self._pool = target, face, pool

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if self._face == "async":
            method: Callable[..., Awaitable[Any]] = getattr(self._target, f"{name}_async")
            return method
        return self.in_thread(getattr(self._target, name))

    def in_thread(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """A blocking function, to be awaited."""

        async def call(*args: Any, **kwargs: Any) -> Any:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

        return call


class AiMethods(Methods):
    """`OnceOnly.ai`, awaited."""

    async def run_fn(self, key: str, fn: Callable[[], Any], **options: Any) -> Any:
        return await self.outlasting(super().__getattr__("run_fn")(key, fn, **options), key)

    async def outlasting(self, running: Awaitable[Any], key: str) -> Any:
        """The outcome of run_fn.

        The SDK's async run_fn stores the outcome, then awaits the heartbeat it has cancelled, and lets that
        CancelledError out in place of its result or of the function's exception (in 3.0.5). No server can help it.
        """
        try:
            return await running
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._face == "sync" or task is None or task.cancelling():
                raise
            if isinstance(error.__context__, Exception):
                raise error.__context__ from None
            return await self.result(key)


class Sdk(Methods):
    """An `onceonly.OnceOnly` whose methods are awaited, whichever face is under test."""

    def __init__(self, client: OnceOnly, face: Face, pool: ThreadPoolExecutor, calls: Calls) -> None:
        super().__init__(client, face, pool)
        self.client = client
        self.calls = calls
        self.ai = AiMethods(client.ai, face, pool)
        self.gov = Methods(client.gov, face, pool)

    def native(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        """A coroutine function as users of this face would write it: as it is, or as a plain function."""
        if self._face == "async":
            return function

        @functools.wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(_awaited(function(*args, **kwargs)))

        return plain

    def awaited(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """What a decorator of the SDK returned, to be awaited on either face."""
        assert inspect.iscoroutinefunction(function) is (self._face == "async")
        return function if self._face == "async" else self.in_thread(function)

    def awaited_ai(
        self, function: Callable[..., Any], key: Callable[..., str]
    ) -> Callable[..., Awaitable[Any]]:
        """The same for @idempotent_ai, with the key it uses for its arguments."""
        call = self.awaited(function)
        return lambda *args: self.ai.outlasting(call(*args), key(*args))


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@asynccontextmanager
async def connected(base_url: str, api_key: str, face: Face, **options: Any) -> AsyncIterator[Sdk]:
    """An SDK client. It does not fail open, so that a server that can't answer is never taken for a lock."""
    calls = Calls()
    options = {
        "fail_open": False,
        "transport": _Recording(calls),
        "async_transport": _AsyncRecording(calls),
        **options,
    }
    with ThreadPoolExecutor(THREADS) as pool:
        client = OnceOnly(api_key, base_url, **options)
        try:
            yield Sdk(client, face, pool, calls)
        finally:
            client.close()
            await client.aclose()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until it is so. Fails when that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain: {what}"
        await asyncio.sleep(0.02)


def unique(name: str = "k") -> str:
    """A name that no other test uses."""
    return f"{name}:{uuid.uuid4().hex}"
