"""Every request as operators see it: counted, timed, traced, and logged with who asked about what."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from onceonly_jobs import metrics, tracing

logger = logging.getLogger(__name__)

METHODS = frozenset(("GET", "POST", "DELETE", "PATCH", "PUT", "HEAD", "OPTIONS"))
UNTRACED = ("/health", "/ready", "/metrics")
LONGEST_PATH = 300


class Observed:
    """Counts and times by route, never by path; the time is until the answer begins, so streams count too."""

    def __init__(self, app: ASGIApp, access_level: int) -> None:
        self._app = app
        self._access_level = access_level

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clear_contextvars()
        bind_contextvars(request_id=scope["state"]["request_id"])
        if scope["path"] in UNTRACED:
            await self._watched(scope, receive, send, None)
            return
        parent = Headers(scope=scope).get(tracing.HEADER)
        with tracing.span(_method(scope), "server", parent=parent) as span:
            await self._watched(scope, receive, send, span)

    async def _watched(self, scope: Scope, receive: Receive, send: Send, span: Any) -> None:
        started, answered = time.perf_counter(), False

        async def watching(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start" and not answered:
                answered = True
                status = Headers(raw=message["headers"]).get("x-onceonly-status")
                self._answered(scope, message["status"], time.perf_counter() - started, span, status)
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception:
            if not answered:  # the handler outside of this one answers
                self._answered(scope, 500, time.perf_counter() - started, span, None)
            raise

    def _answered(self, scope: Scope, status: int, took_s: float, span: Any, lock: str | None) -> None:
        method, route = _method(scope), route_of(scope)
        if span is not None:
            _describe(span, scope, method, route, status)
        level = logging.DEBUG if scope["path"] in UNTRACED else self._access_level
        answered(method, route, scope["path"], status, took_s, lock, level)


def answered(
    method: str, route: str, path: str, status: int, took_s: float, lock: str | None, level: int
) -> None:
    """Count and log an answer. lock: what check-lock said."""
    metrics.count(metrics.HTTP_REQUESTS, method, route, str(status))
    metrics.observe(metrics.HTTP_SECONDS, method, route, seconds=took_s)
    if lock is not None:
        metrics.count(metrics.CHECK_LOCKS, lock)
    if logger.isEnabledFor(level):
        logger.log(level, "%s %s: %d in %.1f ms", method, path[:LONGEST_PATH], status, took_s * 1000)


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else "OTHER"


def route_of(scope: Scope) -> str:
    """The template of the request's route, like `/v1/policies/{agent_id}`; `none` where it has no route."""
    template = getattr(scope.get("route"), "path", None)
    if template is None:
        return "none"
    # FastAPI has not always kept the prefix of an included router in its routes' paths.
    prefixed = scope["path"].startswith("/v1/") and not template.startswith("/v1/")
    return f"/v1{template}" if prefixed else str(template)


def _describe(span: Any, scope: Scope, method: str, route: str, status: int) -> None:
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("onceonly.request_id", scope["state"]["request_id"])
    caller = scope["state"].get("caller")
    if caller is not None:
        span.set_attribute("onceonly.tenant", caller.tenant_id)
    if status >= 500:
        tracing.failed(span, str(status))
