"""Both client libraries under one face: a scenario is written once, and runs over the sync and the async methods
of the published SDK, and of our client, which differs by its import."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx

Mode = Literal["sync", "async"]


@dataclass(frozen=True)
class Library:
    """A client library by the name that a user imports."""

    package: str

    def module(self, name: str = "") -> Any:
        return importlib.import_module(f"{self.package}{name}")

    def __getattr__(self, name: str) -> Any:
        """A public name of it, wherever a user of the SDK imports it from."""
        for home in ("", ".exceptions", ".ai_models"):
            found = getattr(self.module(home), name, None)
            if found is not None:
                return found
        raise AttributeError(name)

    @property
    def published(self) -> bool:
        return self.package == "onceonly"


PUBLISHED, OURS = Library("onceonly"), Library("onceonly_jobs")


@dataclass(frozen=True)
class Face:
    """Which methods of which library are under test."""

    mode: Mode
    library: Library = PUBLISHED

    def __str__(self) -> str:
        return f"{self.library.package}-{self.mode}"


PUBLISHED_FACES = (Face("sync"), Face("async"))
OUR_FACES = (Face("sync", OURS), Face("async", OURS))

THREADS = 40
PATIENCE_S = 30.0


class Calls(list[tuple[str, str, int]]):
    """The HTTP calls a client made, in order of their answers: method, path below /v1, status."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The paths in the order of their requests."""

    def ask(self, request: httpx.Request) -> None:
        self.asked.append(request.url.path.removeprefix("/v1"))

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
        self._calls.ask(request)
        response = super().handle_request(request)
        self._calls.record(request, response)
        return response


class _AsyncRecording(httpx.AsyncHTTPTransport):
    def __init__(self, calls: Calls) -> None:
        super().__init__(verify=False)
        self._calls = calls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._calls.ask(request)
        response = await super().handle_async_request(request)
        self._calls.record(request, response)
        return response


class Methods:
    """An object's methods by one name each: `method` in a thread, or `method_async`. Both are awaited."""

    def __init__(self, target: Any, face: Mode, pool: ThreadPoolExecutor) -> None:
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
    """`OnceOnly.ai` of the published SDK, awaited."""

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
    """A library's OnceOnly whose methods are awaited, whichever face is under test."""

    def __init__(self, client: Any, face: Face, pool: ThreadPoolExecutor, calls: Calls) -> None:
        super().__init__(client, face.mode, pool)
        self.client = client
        self.lib, self.mode = face.library, face.mode
        self.calls = calls
        self.ai = (AiMethods if self.lib.published else Methods)(client.ai, face.mode, pool)
        self.gov = Methods(client.gov, face.mode, pool)

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
        if not isinstance(self.ai, AiMethods):
            return call
        return lambda *args: self.ai.outlasting(call(*args), key(*args))


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@asynccontextmanager
async def connected(base_url: str, api_key: str, face: Face, **options: Any) -> AsyncIterator[Sdk]:
    """A client. It does not fail open, so that a server that can't answer is never taken for a lock, nor retry."""
    calls = Calls()
    options = {
        "fail_open": False,
        "transport": _Recording(calls),
        "async_transport": _AsyncRecording(calls),
        "max_retries_429": 0,
        **options,
    }
    with ThreadPoolExecutor(THREADS) as pool:
        client = face.library.OnceOnly(api_key, base_url, **options)
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
