"""The witness: a process of its own that writes down each side effect, where the code under test cannot reach.

    python -m onceonly_jobs.torture.witness FILE PORT

Handlers tell it what they begin and end; tools are served by it, so that each call of one is seen by what is called.
An effect is on the disk before it is answered.
"""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

SLOW_S = 2.5
LOOPBACK = "127.0.0.1"


class Record:
    """An append-only file of effects, numbered."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("ab")
        self._lock = threading.Lock()
        self._seq = 0
        self._calls: dict[str, int] = {}

    def add(self, kind: str, key: str, data: dict[str, Any]) -> tuple[int, int]:
        """Write it down; its number, and for a call how often that idempotency key was seen."""
        with self._lock:
            self._seq += 1
            row = {"seq": self._seq, "at": time.time(), "kind": kind, "key": key, "data": data}
            self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fdatasync(self._file.fileno())
            idempotency_key = data.get("idempotency_key")
            if kind != "call" or not isinstance(idempotency_key, str):
                return self._seq, 0
            seen = self._calls.get(idempotency_key, 0) + 1
            self._calls[idempotency_key] = seen
            return self._seq, seen

    def seen(self, idempotency_key: str) -> int:
        with self._lock:
            return self._calls.get(idempotency_key, 0)


class Handler(http.server.BaseHTTPRequestHandler):
    """POST /effect, /tool/NAME, /confirm; GET /seen/IDEMPOTENCY_KEY."""

    protocol_version = "HTTP/1.1"
    record: Record

    def do_GET(self) -> None:
        times = self.record.seen(self.path.removeprefix("/seen/"))
        self._answer(200, {"seen": times})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path == "/effect":
            seq, _ = self.record.add(body["kind"], body["key"], body["data"])
            self._answer(200, {"seq": seq})
        elif self.path == "/confirm":
            self._confirm(body)
        else:
            self._tool(self.path.removeprefix("/tool/"), body)

    def _confirm(self, body: dict[str, Any]) -> None:
        """Whether a call has happened, as a reconcilable tool's confirmer says it."""
        times = self.record.seen(str(body.get("idempotency_key")))
        answer: dict[str, Any] = {"happened": times > 0}
        if times:
            answer["result"] = {"confirmed": True}
        self._answer(200, answer)

    def _tool(self, name: str, body: dict[str, Any]) -> None:
        """A tool, at times slow, busy or gone after the fact, as the call's own arguments say."""
        args = body.get("args") or {}
        data = {
            "tool": name,
            "idempotency_key": self.headers.get("X-OnceOnly-Idempotency-Key"),
            "agent_id": body.get("agent_id"),
            "request_id": body.get("request_id"),
            "args": args,
        }
        manner = args.get("manner")
        seq, times = self.record.add("call", f"{body.get('agent_id')}/{name}/{args.get('n')}", data)
        if manner == "busy" and times == 1:
            self._answer(503, {"error": "busy"})
        elif manner == "lost" and times == 1:
            self.close_connection = True
        else:
            if manner == "slow":
                time.sleep(SLOW_S)
            self._answer(200, {"seq": seq, "idempotency_key": data["idempotency_key"]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # whoever asked was killed meanwhile
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """The file says it all."""


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was killed in mid-request is what this is for."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)


def main(path: str, port: str) -> None:
    Handler.record = Record(Path(path))
    Server((LOOPBACK, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
