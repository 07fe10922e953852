"""A short way for usual requests, past the framework: its routing and injection cost more than the answer does.

Whatever is unusual about a request, it goes the regular way, and nothing has been changed by then: an unknown key, a
body in pieces, a value that does not fit. So there is one place that says what is wrong with it, and this is not it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from onceonly_jobs import tracing
from onceonly_jobs.api import answers
from onceonly_jobs.api.observed import answered
from onceonly_jobs.api.request_ids import request_id_of
from onceonly_jobs.api.state import State
from onceonly_jobs.errors import ApiKeyDisabled, InvalidApiKey, RateLimited, Refusal
from onceonly_jobs.store.account import Caller

Ask = Callable[[], Awaitable[Response | None]]
"""Gives the answer; None where it has to be asked for the regular way, nothing being changed."""


class Sent(NamedTuple):
    """What headers say."""

    api_key: str = ""
    request_id: str = ""
    prefer: str | None = None


Quick = Callable[[State, Caller, Any, Sent], Awaitable[Ask | None]]
"""Makes a request of what was sent. Raises ValidationError, Refusal, and gives None, for the regular way."""
Handlers = Mapping[Any, Callable[[Request, Exception], Any]]


class Express:
    """Answers POSTs to these paths whose caller is known, by `quick`; all else is left to the regular way."""

    def __init__(
        self, state: State, handlers: Handlers, quick: Mapping[str, Quick], access_level: int
    ) -> None:
        self._state = state
        self._handlers = handlers
        self._quick = quick
        self._access_level = access_level

    async def __call__(self, scope: Scope, receive: Receive, send: Send, regular: ASGIApp) -> None:
        quick = (
            self._quick.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        )
        caller, sent = None, Sent()
        if quick is not None and not tracing.started():
            sent = _sent(scope)
            caller = self._state.keyring.known(sent.api_key) if sent.api_key else None
        if quick is None or caller is None:
            await regular(scope, receive, send)
            return
        started = time.perf_counter()
        message = await receive()
        answer = await self._answer(scope, quick, message, caller, sent)
        if answer is None:
            await regular(scope, _again(message, receive), send)
            return
        took_s = time.perf_counter() - started
        lock = answer.lock if isinstance(answer, answers.Quick) else answer.headers.get("X-OnceOnly-Status")
        path = scope["path"]
        answered("POST", path, path, answer.status_code, took_s, lock, self._access_level)
        common = [
            (b"x-request-id", sent.request_id.encode("latin-1")),
            (b"x-onceonly-plan", caller.plan.value.encode()),
        ]
        head = {"type": "http.response.start", "status": answer.status_code}
        await send(head | {"headers": answer.raw_headers + common})
        await send({"type": "http.response.body", "body": answer.body})

    async def _asked(self, quick: Quick, caller: Caller, message: Message, sent: Sent) -> Ask | None:
        body = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body"):
            return None
        if len(body) > self._state.settings.max_body_bytes:
            return None
        try:
            return await quick(self._state, caller, from_json(body, allow_inf_nan=False), sent)
        except (ValueError, ValidationError, Refusal):
            return None

    async def _answer(
        self, scope: Scope, quick: Quick, message: Message, caller: Caller, sent: Sent
    ) -> Response | None:
        try:
            ask = await self._asked(quick, caller, message, sent)
            if ask is None:
                return None
            try:
                await self._state.limiter.check(caller)
            except RateLimited:
                if not await self._holds(sent.api_key):  # a key that was revoked is told so first
                    return None
                raise
            return await ask()
        except Exception as error:
            clear_contextvars()
            bind_contextvars(request_id=sent.request_id, tenant=caller.tenant_id)
            scope.setdefault("state", {})["request_id"] = sent.request_id
            handler = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
            answer: Response = handler(Request(scope), error)
            return answer

    async def _holds(self, api_key: str) -> bool:
        try:
            await self._state.keyring.read(api_key)
        except (InvalidApiKey, ApiKeyDisabled):
            return False
        return True


def _sent(scope: Scope) -> Sent:
    """The API key and the request id that were sent; no key where none was, or more than is usual."""
    api_key = request_id = None
    prefer = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            if api_key is not None:
                return Sent()
            api_key = value
        elif name == b"x-request-id":
            if request_id is not None:
                return Sent()
            request_id = value
        elif name == b"prefer" and prefer is None:
            prefer = value.decode("latin-1")
    scheme, _, token = (api_key or b"").decode("latin-1").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    return Sent(key, request_id_of((request_id or b"").decode("latin-1")), prefer)


def _again(message: Message, receive: Receive) -> Receive:
    """Receives what was received already, and then goes on."""
    first: list[Message] = [message]

    async def receiving() -> Message:
        return first.pop() if first else await receive()

    return receiving
