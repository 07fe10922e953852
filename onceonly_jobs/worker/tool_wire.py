"""One POST to a tool, over one connection: to an address that was checked, and within one time for all of it."""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.effects import succeeded
from onceonly_jobs.worker.addresses import addresses_of

BROKEN = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)


class NotSent(Exception):
    """Not one byte of the request left."""


class Lost(Exception):
    """The request was sent, perhaps in part, and no whole answer came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `whole` is false when there was more than the limit, or an error's body broke off."""

    status: int
    headers: httpx.Headers
    body: bytes
    whole: bool


def post(
    url: httpx.URL, headers: Mapping[str, str], body: bytes, *, allowed: Allowed, timeout_s: float, limit: int
) -> Answer:
    """The answer to a POST, up to limit bytes of its body. Redirects are answers; proxies are not used.

    timeout_s is for everything: name, connection, TLS, request and the answer's last byte.
    Raises NotSent, Lost, or addresses.Forbidden.
    """
    network = _Network(allowed, _Deadline(timeout_s))
    sent = {"Host": url.netloc.decode("ascii"), **headers}
    try:
        with (
            httpcore.ConnectionPool(ssl_context=_tls(), network_backend=network) as pool,
            pool.stream("POST", _core_url(url), headers=list(sent.items()), content=body) as response,
        ):
            return _answer(response, limit)
    except BROKEN as error:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise (Lost if network.written else NotSent)(text) from error


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _answer(response: httpcore.Response, limit: int) -> Answer:
    body, whole = bytearray(), False
    try:
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            whole = True
    except BROKEN:
        if succeeded(response.status):  # its result is missing; of an error the status is enough
            raise
    return Answer(response.status, httpx.Headers(response.headers), bytes(body[:limit]), whole)


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        return left


@contextlib.contextmanager
def _errors_as(timed_out: type[Exception], failed: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timed_out(str(error)) from error
    except (OSError, UnicodeError) as error:
        raise failed(str(error)) from error


class _Network(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and knows whether anything was written."""

    def __init__(self, allowed: Allowed, deadline: _Deadline) -> None:
        self._allowed = allowed
        self._deadline = deadline
        self.written = False

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        with _errors_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _Stream(self._connected(host, port), self._deadline, self)

    def _connected(self, host: str, port: int) -> socket.socket:
        """A connection to the first address that takes one; each but the last gets its share of the time."""
        addresses = addresses_of(host, port, self._allowed, self._deadline.left_s())
        for others in range(len(addresses) - 1, 0, -1):
            share_s = self._deadline.left_s() / (others + 1)
            with contextlib.suppress(OSError):
                return socket.create_connection((addresses[-others - 1], port), share_s)
        return socket.create_connection((addresses[-1], port), self._deadline.left_s())


class _Stream(httpcore.NetworkStream):
    """A connection, each step of which gets what is left of the whole time."""

    def __init__(self, sock: socket.socket, deadline: _Deadline, network: _Network) -> None:
        self._sock = sock
        self._deadline = deadline
        self._network = network
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_as(httpcore.ReadTimeout, httpcore.ReadError):
            self._sock.settimeout(self._deadline.left_s())
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        with _errors_as(httpcore.WriteTimeout, httpcore.WriteError):
            while view:
                self._sock.settimeout(self._deadline.left_s())
                self._network.written = (
                    True  # before it is: who interrupts a send does not learn how far it came
                )
                view = view[self._sock.send(view) :]

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        with _errors_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                self._sock.settimeout(self._deadline.left_s())
                sock = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
            except BaseException:
                self.close()
                raise
        return _Stream(sock, self._deadline, self._network)

    def get_extra_info(self, info: str) -> Any:
        """Nothing: httpcore asks for the ALPN protocol, and HTTP/1.1 is the only one that is offered."""
        return None
