"""The two drivers of flows: over httpx.Client, and over httpx.AsyncClient."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from onceonly_jobs import tracing
from onceonly_jobs.client.keeping import AsyncKeeper, Keeper
from onceonly_jobs.client.leases import Work
from onceonly_jobs.client.settings import ClientSettings
from onceonly_jobs.client.wire import Context, Flow, Request, Send

T = TypeVar("T")
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=50)
"""Long polls hold connections: a bound would make callers wait for each other."""


@functools.cache
def _tls() -> ssl.SSLContext:
    """Made once a process: reading the certificates costs more than a request."""
    return httpx.create_ssl_context()


class Connections:
    """httpx clients, made on first use: one for all threads, one per event loop, none inherited by a fork."""

    def __init__(
        self,
        settings: ClientSettings,
        *,
        sync_client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._given_sync, self._given_async = sync_client, async_client
        self._transport, self._async_transport = transport, async_transport
        self._forget()
        _every.add(self)

    @property
    def own(self) -> bool:
        """Whether all connections are made here, and none were given."""
        given = (self._given_sync, self._given_async, self._transport, self._async_transport)
        return all(part is None for part in given)

    def _forget(self) -> None:
        """Drop all clients without closing them: after a fork their sockets are the parent's."""
        self._lock = threading.Lock()
        self._sync: httpx.Client | None = None
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._async = weakref.WeakKeyDictionary()

    def _options(self) -> dict[str, Any]:
        headers = {"User-Agent": self._settings.user_agent}
        return {"timeout": self._settings.timeout, "headers": headers, "limits": LIMITS, "verify": _tls()}

    def sync(self) -> httpx.Client:
        if self._given_sync is not None:
            return self._given_sync
        with self._lock:
            if self._sync is None:
                self._sync = httpx.Client(transport=self._transport, **self._options())
            return self._sync

    def of_loop(self) -> httpx.AsyncClient:
        """The running loop's own: a connection of one loop is of no use in another."""
        if self._given_async is not None:
            return self._given_async
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._async.get(loop)
            if client is None:
                client = httpx.AsyncClient(transport=self._async_transport, **self._options())
                self._async[loop] = client
            return client

    def close(self) -> None:
        with self._lock:
            client, self._sync = self._sync, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close what was opened in the running loop."""
        with self._lock:
            client = self._async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


_every: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork() -> None:
    for connections in list(_every):
        connections._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Driver:
    """Runs flows over a set of connections."""

    def __init__(self, settings: ClientSettings, connections: Connections) -> None:
        self.settings = settings
        self.context = Context(settings)
        self.connections = connections

    def run(self, flow: Flow[T], sleep: Callable[[float], object] = time.sleep) -> T:
        """Run a flow to its end."""
        answer, error = None, None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as done:
                value: T = done.value
                return value
            answer, error = None, None
            try:
                answer = self._perform(step, sleep)
            except BaseException as raised:
                error = raised

    def _perform(self, step: Any, sleep: Callable[[float], object]) -> Any:
        if isinstance(step, Send):
            client = self.connections.sync()
            return client.send(_prepared(self.settings, client, step.request))
        if isinstance(step, Work):
            with Keeper(self, step.lease, step.every):
                return step.function()
        sleep(step.seconds)
        return None

    async def arun(self, flow: Flow[T]) -> T:
        """`run`, without blocking the event loop."""
        answer, error = None, None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as done:
                value: T = done.value
                return value
            answer, error = None, None
            try:
                answer = await self._aperform(step)
            except BaseException as raised:
                error = raised

    async def _aperform(self, step: Any) -> Any:
        if isinstance(step, Send):
            client = self.connections.of_loop()
            return await client.send(_prepared(self.settings, client, step.request))
        if isinstance(step, Work):
            async with AsyncKeeper(self, step.lease, step.every):
                value = step.function()
                return await value if inspect.isawaitable(value) else value
        await asyncio.sleep(step.seconds)
        return None


def _prepared(
    settings: ClientSettings, client: httpx.Client | httpx.AsyncClient, request: Request
) -> httpx.Request:
    """A given client's own base URL, headers and time-outs are left as they are."""
    base = str(client.base_url).rstrip("/") if client.base_url.host else settings.base_url
    headers = dict(request.headers)
    if settings.api_key and "Authorization" not in client.headers:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    tracing.inject(headers)
    return client.build_request(
        request.method,
        (_origin(base) if request.at_origin else base) + request.path,
        json=request.json,
        params=request.params,
        headers=headers,
        timeout=_timeout(client.timeout, request),
    )


def _origin(base_url: str) -> str:
    """The server without its path: where /ready is."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}"


def _timeout(usual: httpx.Timeout, request: Request) -> httpx.Timeout:
    read, cap = usual.read, request.timeout_s
    if read is not None:
        read += request.hold_s
    spans = {"connect": usual.connect, "read": read, "write": usual.write, "pool": usual.pool}
    if cap is not None:
        spans = {name: cap if span is None else min(span, cap) for name, span in spans.items()}
    return httpx.Timeout(**spans)
