"""Locks and leases in this process: as much of a server as a client needs to be tried out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx

from onceonly_jobs.client import OnceOnly


class Server:
    """What it was asked is in `seen`, what came of each key in `done`."""

    def __init__(self) -> None:
        self.locks: set[str] = set()
        self.done: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.extends = 0
        self.lose_at: int | None = None
        self.extended = threading.Event()

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1")
        body = json.loads(request.content or b"{}") or dict(request.url.params)
        self.seen.append((path, body))
        handle: Callable[[Any], httpx.Response] = getattr(
            self, path.strip("/").replace("/", "_").replace("-", "_")
        )
        return handle(body)

    def check_lock(self, body: Any) -> httpx.Response:
        first = body["key"] not in self.locks
        self.locks.add(body["key"])
        return httpx.Response(200, json={"status": "locked" if first else "duplicate", "ttl": 60})

    def ai_lease(self, body: Any) -> httpx.Response:
        key = body["key"]
        if key in self.done:
            return httpx.Response(200, json=self.done[key])
        fields = {"ok": True, "status": "acquired", "key": key, "lease_id": "lease_1", "ttl": 60}
        return httpx.Response(200, json=fields)

    def ai_extend(self, body: Any) -> httpx.Response:
        self.extends += 1
        self.extended.set()
        if self.lose_at is not None and self.extends >= self.lose_at:
            return self.conflict()
        return httpx.Response(200, json={"status": "extended"})

    def ai_complete(self, body: Any) -> httpx.Response:
        if self.lose_at is not None and self.extends >= self.lose_at:
            return self.conflict()
        self.done[body["key"]] = {
            "ok": True, "status": "completed", "key": body["key"], "result": body.get("result"), "done_at": "now",
        }  # fmt: skip
        return httpx.Response(200, json={"status": "completed", "done_at": "now"})

    def ai_fail(self, body: Any) -> httpx.Response:
        failed = {
            "ok": False,
            "status": "failed",
            "key": body["key"],
            "error_code": body["error_code"],
            "done_at": "now",
        }
        self.done[body["key"]] = failed
        return httpx.Response(200, json={"status": "failed"})

    def conflict(self) -> httpx.Response:
        detail = {"error": "lease_conflict", "reason": "not_owner", "message": "held by another caller"}
        return httpx.Response(409, json={"detail": detail})

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def stored(self) -> Any:
        """The body of the last complete or fail."""
        return next(body for path, body in reversed(self.seen) if path in ("/ai/complete", "/ai/fail"))

    def client(self) -> OnceOnly:
        """A client that has nobody else to talk to."""

        async def answer(request: httpx.Request) -> httpx.Response:
            return self.answer(request)

        transports = httpx.MockTransport(self.answer), httpx.MockTransport(answer)
        return OnceOnly(
            "once_live_secret", "http://test", transport=transports[0], async_transport=transports[1]
        )
