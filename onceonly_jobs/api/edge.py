"""What happens to every request before its route: request id, key, rate, size, strict JSON. In that order."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from onceonly_jobs.api.problems import invalid
from onceonly_jobs.api.request_ids import request_id_of
from onceonly_jobs.api.state import State
from onceonly_jobs.errors import MissingToken, PayloadTooLarge
from onceonly_jobs.store.account import Caller


class CommonHeaders:
    """X-Request-Id, the caller's or a new one, on every response; X-OnceOnly-Plan on every one to a valid key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"").decode("latin-1")
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = request_id_of(sent)

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if "caller" in state:
                    headers["X-OnceOnly-Plan"] = state["caller"].plan.value
            await send(message)

        await self._app(scope, receive, tagged)


class StrictRequest(Request):
    """A request whose body is bounded and whose JSON is exact: no NaN, no broken text, no bottomless nesting."""

    _MISSING = object()
    _parsed: Any = _MISSING

    async def load(self, limit_bytes: int) -> None:
        """Read and parse the body. Raises PayloadTooLarge, RequestValidationError."""
        chunks: list[bytes] = []
        size = 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > limit_bytes:
                raise PayloadTooLarge(limit_bytes)
            chunks.append(chunk)
        self._body = b"".join(chunks)
        if self._body:
            try:
                self._parsed = from_json(self._body, allow_inf_nan=False)
            except ValueError as error:
                raise invalid(("body",), f"JSON decode error: {error}", "json_invalid") from None

    @property
    def parsed(self) -> Any:
        """The body, once it was loaded."""
        return self._parsed

    async def json(self) -> Any:
        return self._parsed


def _as_json(scope: Scope) -> Scope:
    """The same request with a JSON content type: nothing else is ever sent here, whatever a client calls it."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def bearer(request: Request) -> str:
    """The API key of a request. Raises MissingToken."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise MissingToken
    return token.strip()


class ContractRoute(APIRoute):
    """A route behind an API key: a refused key is told so before anything of its request is looked at."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            state = state_of(request)
            caller = await state.keyring.read(bearer(request))
            request.state.caller = caller
            bind_contextvars(tenant=caller.tenant_id)
            await state.limiter.check(caller)
            strict = StrictRequest(_as_json(request.scope), request.receive)
            if request.method in ("POST", "PATCH"):
                await strict.load(state.settings.max_body_bytes)
            _bind_names(strict)
            return await handle(strict)

        return guarded


class DiscreetRoute(ContractRoute):
    """Says what is wrong with a body, and shows nothing of it: any part of it may be a secret."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def discreet(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise RequestValidationError([_hidden(one) for one in error.errors()]) from None

        return discreet


def _hidden(error: dict[str, Any]) -> dict[str, Any]:
    return {**error, "input": {}} if error["loc"][0] == "body" else error


def _bind_names(request: StrictRequest) -> None:
    """Let the log lines of this request tell what it is about."""
    sent = request.parsed if isinstance(request.parsed, dict) else request.query_params
    names = {name: sent.get(name) for name in ("key", "run_id", "agent_id")}
    bind_contextvars(**{name: text[:256] for name, text in names.items() if isinstance(text, str)})


def state_of(request: Request) -> State:
    return cast(State, request.app.state.onceonly)


def _caller_of(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


Held = Annotated[State, Depends(state_of)]
Asking = Annotated[Caller, Depends(_caller_of)]
