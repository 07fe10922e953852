"""A tool back-end that answers as scripted, over real HTTP on loopback, and counts what it was asked."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Received:
    """One request as it came. Names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.time)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        behave = self.server.tool.take(Received(self.path, headers, body))
        try:
            behave(self)
        except OSError:  # the other side has gone, as some tests want it to
            self.close_connection = True

    def do_GET(self) -> None:
        """A redirect that was followed, perhaps."""
        self.do_POST()

    def answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.head(code, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


Behaviour = Callable[[Handler], None]


def ok(result: Any = None, **headers: str) -> Behaviour:
    """200 with this JSON. An underscore in a header's name stands for a hyphen."""
    return status(200, json.dumps({"ok": True} if result is None else result).encode(), **headers)


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """This status with this body."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, body, sent)


def redirect(url: str, code: int = 307) -> Behaviour:
    """A redirect that must not be followed."""
    return status(code, location=url)


def after(seconds: float, then: Behaviour) -> Behaviour:
    """Nothing for a while, then something."""

    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        then(handler)

    return behave


def drip(code: int = 200, every_s: float = 0.05, pieces: int = 12_000) -> Behaviour:
    """An answer whose body comes a byte at a time: no single read takes long, and all of it ten minutes."""

    def behave(handler: Handler) -> None:
        handler.close_connection = True
        handler.head(code, {"Content-Length": str(pieces)})
        for _ in range(pieces):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(every_s)

    return behave


def endless(handler: Handler) -> None:
    """An answer whose body never ends, and comes fast."""
    handler.close_connection = True
    handler.head(200, {"Content-Type": "text/plain"})
    while True:
        handler.wfile.write(b"x" * 65_536)


def drip_head(every_s: float = 0.05, lines: int = 12_000) -> Behaviour:
    """An answer whose headers come one at a time, for ten minutes."""

    def behave(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(lines):
            handler.wfile.write(b"X-%d: 1\r\n" % number)
            handler.wfile.flush()
            time.sleep(every_s)

    return behave


def broken_off(code: int = 200) -> Behaviour:
    """An answer that promises more than it brings."""

    def behave(handler: Handler) -> None:
        handler.close_connection = True
        handler.head(code, {"Content-Length": "100"})
        handler.wfile.write(b'{"sent": ')

    return behave


def reset(handler: Handler) -> None:
    """The request is taken, then the connection is reset."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    tool: ToolServer

    def handle_error(self, *_: Any) -> None:
        """Quiet: connections that break off are what these tests are about."""


class ToolServer:
    """A back-end. Behaviours given to `script` are used once each, in order; else it does what `otherwise` says."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._lock = threading.Lock()
        self._script: deque[Behaviour] = deque()
        self.otherwise: Callable[[Received], Behaviour] = lambda _: ok()
        self.requests: list[Received] = []
        self._server = _Server((LOOPBACK, 0), Handler)
        self._server.tool = self
        self.scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.port}/tool"

    def script(self, *behaviours: Behaviour) -> Self:
        with self._lock:
            self._script.extend(behaviours)
        return self

    def take(self, received: Received) -> Behaviour:
        with self._lock:
            self.requests.append(received)
            return self._script.popleft() if self._script else self.otherwise(received)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def refused_url() -> str:
    """A URL where nobody listens: the port was free a moment ago."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        return f"http://{LOOPBACK}:{taken.getsockname()[1]}/"
