"""An `Idempotency-Key` middleware for FastAPI, Starlette and every other ASGI application (on asyncio).

    app.add_middleware(IdempotencyMiddleware, client=OnceOnly())

The rules and the options are those of `idempotency.Idempotency`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from onceonly_jobs.client.exceptions import LeaseLost
from onceonly_jobs.client.keeping import AsyncKeeper
from onceonly_jobs.client.leases import Lease, beat_every
from onceonly_jobs.integrations.idempotency import BEAT_EVERY_S, Answer, Idempotency, Incoming, in_flight

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_UNSEEN = {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
"""Ways to answer that leave nothing to keep; an application only uses them where they are offered."""


class IdempotencyMiddleware:
    """Lets a request with a key run once, and answers its repeats. **options are those of Idempotency."""

    def __init__(self, app: App, **options: Any) -> None:
        self.app = app
        self.rules = Idempotency(**options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        incoming = _incoming(scope)
        key = self.rules.key(incoming)
        if key is None:
            return await self.app(scope, receive, send)
        if isinstance(key, Answer):
            return await _answer(send, key)
        body = await _body(receive, self.rules.max_body_bytes)
        if body is None:
            return None
        if len(body) > self.rules.max_body_bytes:
            return await _answer(send, self.rules.too_large())
        driver = self.rules.client.driver
        admitted = await driver.arun(self.rules.admit(replace(incoming, body=body), key))
        if isinstance(admitted, Answer):
            return await _answer(send, admitted)
        exchange = _Exchange(self.rules, admitted, body, receive, send)
        if _UNSEEN & set(scope.get("extensions") or ()):
            offered = {name: value for name, value in scope["extensions"].items() if name not in _UNSEEN}
            scope = {**scope, "extensions": offered}
        if admitted is None:
            return await self.app(scope, exchange.receive, send)
        return await self._guarded(scope, exchange, admitted)

    async def _guarded(self, scope: Scope, exchange: _Exchange, lease: Lease) -> None:
        driver = self.rules.client.driver
        try:
            async with AsyncKeeper(driver, lease, beat_every(lease.ttl, BEAT_EVERY_S)):
                await self.app(scope, exchange.receive, exchange.send)
        except LeaseLost:
            if not lease.lost or exchange.over.is_set():
                raise
            await _answer(exchange.forward, in_flight(lease))
            return
        except Exception as error:
            if not exchange.over.is_set():
                await driver.arun(self.rules.release(lease, type(error).__name__))
            raise
        if not exchange.over.is_set():
            await driver.arun(self.rules.release(lease, "no response"))


class _Exchange:
    """Stands between the application and its server for one request.

    A response is held back until it is whole and stored. `over`: the guard's part is done.
    """

    def __init__(
        self, rules: Idempotency, lease: Lease | None, body: bytes, receive: Receive, send: Send
    ) -> None:
        self.over = asyncio.Event()
        self.forward = send
        self._rules, self._body, self._receive = rules, body, receive
        self._delivered = False
        self._start: Message = {}
        self._held = bytearray()
        if lease is None:
            self.over.set()
        else:
            self._lease = lease

    async def receive(self) -> Message:
        """The request. That its sender has left is not told while the response is still to be kept."""
        if not self._delivered:
            self._delivered = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.over.wait()
        return await self._receive()

    async def send(self, message: Message) -> None:
        if self.over.is_set() or message["type"] not in ("http.response.start", "http.response.body"):
            return await self.forward(message)
        if message["type"] == "http.response.start":
            self._start = message
            if self._rules.is_stream(self._answer()):
                await self._pass_through()
            return None
        self._held += message.get("body", b"")
        if not message.get("more_body", False):
            await self._whole()
        elif len(self._held) > self._rules.max_response_bytes:
            await self._pass_through()
        return None

    def _answer(self) -> Answer:
        headers = (
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._start["headers"]
        )
        return Answer(self._start["status"], tuple(headers), bytes(self._held))

    async def _whole(self) -> None:
        given = self._answer()
        told = await self._rules.client.driver.arun(self._rules.keep(self._lease, given))
        self.over.set()
        if told is not given:
            return await _answer(self.forward, told)
        await self.forward(self._start)
        return await self.forward({"type": "http.response.body", "body": given.body, "more_body": False})

    async def _pass_through(self) -> None:
        flow = self._rules.pass_through(self._lease, self._start["status"])
        await self._rules.client.driver.arun(flow)
        self.over.set()
        await self.forward(self._start)
        if self._held:
            await self.forward({"type": "http.response.body", "body": bytes(self._held), "more_body": True})


def _incoming(scope: Scope) -> Incoming:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        known, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[known] = f"{headers[known]},{text}" if known in headers else text
    query = scope.get("query_string", b"").decode("latin-1")
    return Incoming(scope["method"], scope["path"], query, headers, scope)


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or enough of it to be too large. None when its sender has left."""
    body = bytearray()
    while len(body) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


async def _answer(send: Send, answer: Answer) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
