"""A shop that charges cards, as a FastAPI, a Flask and a Django application with the same guard in front."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 30.0
LARGE = 40_000
"""More than `max_response_bytes` in these tests."""


class CardDeclined(Exception):
    """The handler broke."""


@dataclass
class Shop:
    """What the handlers did. `calls` counts by path."""

    calls: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def handle(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request to one of the paths below."""
        with self.lock:
            self.calls[path] += 1
            number = self.calls[path]
        return getattr(self, path.strip("/"))(number, body)  # type: ignore[no-any-return]

    def charges(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        told = json.dumps({"charge": number, "for": json.loads(body or b"{}")}).encode()
        headers = {
            "Content-Type": "application/json",
            "Location": f"/charges/{number}",
            "X-Trace": str(number),
        }
        return 201, headers, told

    def slow(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The first one takes until it is told to go on."""
        if number == 1:
            self.entered.set()
            assert self.go_on.wait(PATIENCE_S)
        return self.charges(number, body)

    def flaky(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return self.charges(number, body) if number > 1 else (503, {}, b"later")

    def breaking(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if number == 1:
            raise CardDeclined
        return self.charges(number, body)

    def refused(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 402, {"Content-Type": "text/plain"}, b"card declined"

    def limited(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return self.charges(number, body) if number > 1 else (429, {"Retry-After": "1"}, b"slow down")

    def binary(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "image/png"}, b"\x89PNG\x00\xff" + bytes([number])

    def large(self, number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "text/plain"}, b"x" * LARGE

    def stream(self, number: int, body: bytes) -> Iterator[bytes]:
        """Parts of a response of type text/event-stream."""
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"


def starlette_app(shop: Shop, **options: Any) -> Any:
    from fastapi import FastAPI
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

    from onceonly_jobs.integrations.asgi import IdempotencyMiddleware

    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, **options)

    async def handle(request: Request) -> Response:
        body = await request.body()
        if request.url.path == "/stream":
            shop.calls["/stream"] += 1
            return StreamingResponse(shop.stream(1, body), media_type="text/event-stream")
        status, headers, told = await run_in_threadpool(shop.handle, request.url.path, body)
        return Response(told, status, headers)

    app.add_route("/{rest:path}", handle, methods=["POST", "PATCH", "GET"])
    return app


def flask_app(shop: Shop, **options: Any) -> Any:
    from flask import Flask, Response, request

    from onceonly_jobs.integrations.wsgi import IdempotencyMiddleware

    app = Flask("shop")

    @app.route("/<path:rest>", methods=["POST", "PATCH", "GET"])
    def handle(rest: str) -> Response:
        if rest == "stream":
            shop.calls["/stream"] += 1
            return Response(shop.stream(1, b""), mimetype="text/event-stream")
        status, headers, told = shop.handle(f"/{rest}", request.get_data())
        return Response(told, status, headers)

    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, **options)  # type: ignore[method-assign]
    return app


def _django_settings(options: dict[str, Any]) -> Any:
    import django
    from django.conf import settings
    from django.test.utils import override_settings

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            ROOT_URLCONF="support.shop_urls",
            MIDDLEWARE=["onceonly_jobs.integrations.django.IdempotencyMiddleware"],
            LOGGING_CONFIG=None,
            SECRET_KEY="x",
        )
        django.setup()
    return override_settings(ONCEONLY_IDEMPOTENCY=options)


def django_wsgi_app(shop: Shop, **options: Any) -> Any:
    from django.core.handlers.wsgi import WSGIHandler
    from support import shop_urls

    shop_urls.shop = shop
    with _django_settings(options):
        return WSGIHandler()


def django_asgi_app(shop: Shop, **options: Any) -> Any:
    from django.core.handlers.asgi import ASGIHandler
    from support import shop_urls

    shop_urls.shop = shop
    with _django_settings(options):
        return ASGIHandler()
