"""What the agent examples share: a name for the agent, and signed tools on this machine."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from onceonly_jobs import OnceOnly


def agent_name(role: str) -> str:
    """ONCEONLY_AGENT_ID, else an agent of this run alone, so that no earlier run has used up its limits."""
    return os.environ.get("ONCEONLY_AGENT_ID") or f"{role}-{secrets.token_hex(3)}"


@contextmanager
def tools(client: OnceOnly, agent_id: str, *names: str) -> Iterator[list[dict[str, Any]]]:
    """Serve and register tools of these names for this agent alone; gives the calls that had an effect.

    The server has to reach this machine: `onceonly-jobs up` allows tools on loopback, other systems need
    ONCEONLY_TOOL_ALLOW=loopback.
    """
    secret = secrets.token_hex(16)
    with _Backend(secret) as backend:
        scope = f"agent:{agent_id}"  # found before tools of the same name that all agents share
        for name in names:
            client.gov.create_tool(
                {
                    "name": name,
                    "scope_id": scope,
                    "url": f"http://127.0.0.1:{backend.server_port}/{name}",
                    "auth": {"type": "hmac_sha256", "secret": secret},
                    "effect": "idempotent",  # as the back-end tells repeats by their key, see _Handler
                }
            )
        try:
            yield backend.done
        finally:
            for name in names:
                client.gov.delete_tool(name, scope_id=scope)


class _Backend(ThreadingHTTPServer):
    """The tools' own server. A real one keeps `answers` in its database, beside the effect."""

    def __init__(self, secret: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secret = secret
        self.done: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> _Backend:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def act(self, call: dict[str, Any]) -> dict[str, Any]:
        """Do it, or answer a repeat of the same call as the first time."""
        with self.lock:
            key = call["idempotency_key"]
            if key not in self.answers:
                self.done.append({"tool": call["tool"], **call["args"]})
                self.answers[key] = {"done": call["tool"], "number": len(self.done)}
            return self.answers[key]


class _Handler(BaseHTTPRequestHandler):
    server: _Backend

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._signed(body):
            self._answer(200, self.server.act(json.loads(body)))
        else:
            self._answer(401, {"error": "not signed with the tool's secret"})

    def _signed(self, body: bytes) -> bool:
        timestamp = self.headers.get("X-OnceOnly-Timestamp", "")
        expected = hmac.new(self.server.secret.encode(), body, hashlib.sha256).hexdigest()
        return (
            self.headers.get("X-OnceOnly-Signature-Alg") == "hmac_sha256"
            and timestamp.isdecimal()
            and abs(time.time() - int(timestamp)) <= 300
            and hmac.compare_digest(expected.encode(), self.headers.get("X-OnceOnly-Signature", "").encode())
        )

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: an example prints what it is about."""
