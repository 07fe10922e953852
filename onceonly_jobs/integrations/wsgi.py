"""An `Idempotency-Key` middleware for Flask and every other WSGI application.

    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, client=OnceOnly())

The rules and the options are those of `idempotency.Idempotency`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from onceonly_jobs.client.keeping import Keeper
from onceonly_jobs.client.leases import Lease, beat_every
from onceonly_jobs.integrations.idempotency import BEAT_EVERY_S, Answer, Idempotency, Incoming

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class IdempotencyMiddleware:
    """Lets a request with a key run once, and answers its repeats. **options are those of Idempotency."""

    def __init__(self, app: App, **options: Any) -> None:
        self.app = app
        self.rules = Idempotency(**options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        incoming = _incoming(environ)
        key = self.rules.key(incoming)
        if key is None:
            return self.app(environ, start_response)
        if isinstance(key, Answer):
            return _answer(start_response, key)
        body = _body(environ, self.rules.max_body_bytes)
        if len(body) > self.rules.max_body_bytes:
            return _answer(start_response, self.rules.too_large())
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        driver = self.rules.client.driver
        admitted = driver.run(self.rules.admit(replace(incoming, body=body), key))
        if isinstance(admitted, Answer):
            return _answer(start_response, admitted)
        if admitted is None:
            return self.app(environ, start_response)
        return self._guarded(environ, start_response, admitted)

    def _guarded(self, environ: Environ, start_response: StartResponse, lease: Lease) -> Iterable[bytes]:
        driver, rules = self.rules.client.driver, self.rules
        response = _Response()
        try:
            with Keeper(driver, lease, beat_every(lease.ttl, BEAT_EVERY_S)):
                whole = response.read(self.app, environ, rules)
        except Exception as error:
            response.close()
            driver.run(rules.release(lease, type(error).__name__))
            raise
        if not whole:
            driver.run(rules.pass_through(lease, response.status))
            response.started(start_response)
            return response
        response.close()
        given = response.answer()
        told = driver.run(rules.keep(lease, given))
        if told is not given:
            return _answer(start_response, told)
        response.started(start_response)
        return [given.body]


class _Response:
    """What an application answers, read as far as it can be kept; the rest comes by iterating."""

    def __init__(self) -> None:
        self._line, self._headers = "", list[tuple[str, str]]()
        self._held: list[bytes] = []
        self._parts: Iterable[bytes] = ()
        self._rest: Iterator[bytes] = iter(())

    @property
    def status(self) -> int:
        return int(self._line[:3])

    def answer(self) -> Answer:
        return Answer(self.status, tuple(self._headers), b"".join(self._held))

    def read(self, app: App, environ: Environ, rules: Idempotency) -> bool:
        """Whether the response is whole. Raises what the application raises."""
        self._parts = app(environ, self._start)
        self._rest = iter(self._parts)
        size = 0
        for part in self._rest:
            self._held.append(part)
            size += len(part)
            if size > rules.max_response_bytes or rules.is_stream(self.answer()):
                return False
        if not self._line:
            raise RuntimeError("the application returned without calling start_response")
        return True

    def _start(
        self, line: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        self._line, self._headers = line, list(headers)
        return self._held.append

    def started(self, start_response: StartResponse) -> None:
        start_response(self._line, self._headers)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._held
        yield from self._rest

    def close(self) -> None:
        if hasattr(self._parts, "close"):
            self._parts.close()


def _incoming(environ: Environ) -> Incoming:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") and isinstance(value, str)
    }
    headers["content-type"] = environ.get("CONTENT_TYPE", "")
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return Incoming(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", ""), headers, environ)


def _body(environ: Environ, limit: int) -> bytes:
    """The whole body, or enough of it to be too large. Raises OSError for one that breaks off."""
    stream, told = environ["wsgi.input"], environ.get("CONTENT_LENGTH") or ""
    if told.isdecimal():
        body: bytes = stream.read(min(int(told), limit + 1))
        if len(body) < min(int(told), limit + 1):
            raise OSError("the request's body broke off")
        return body
    return stream.read(limit + 1) if environ.get("wsgi.input_terminated") else b""


def _answer(start_response: StartResponse, answer: Answer) -> list[bytes]:
    try:
        words = HTTPStatus(answer.status).phrase
    except ValueError:
        words = "Unknown"
    headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
    start_response(f"{answer.status} {words}", headers)
    return [answer.body]
