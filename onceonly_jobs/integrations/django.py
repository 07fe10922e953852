"""An `Idempotency-Key` middleware for Django, sync and async. Needs Django.

    MIDDLEWARE = [..., "onceonly_jobs.integrations.django.IdempotencyMiddleware"]
    ONCEONLY_IDEMPOTENCY = {"required": True}

The setting holds options of `idempotency.Idempotency`, all optional; the client is made from the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse, HttpResponseBase
except ModuleNotFoundError as missing:
    raise ImportError("this needs Django: pip install 'onceonly-jobs[django]'") from missing

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.client.exceptions import LeaseLost
from onceonly_jobs.client.keeping import AsyncKeeper, Keeper
from onceonly_jobs.client.leases import Lease, beat_every
from onceonly_jobs.client.wire import Flow
from onceonly_jobs.integrations.idempotency import BEAT_EVERY_S, Answer, Idempotency, Incoming, in_flight


class IdempotencyMiddleware:
    """Lets a request with a key run once, and answers its repeats."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        options = dict(getattr(settings, "ONCEONLY_IDEMPOTENCY", {}))
        self.rules = Idempotency(client=options.pop("client", None) or OnceOnly(), **options)
        self.get_response = get_response
        self._driver = self.rules.client.driver
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self._is_async:
            return self._acall(request)
        entry = self._enter(request)
        admitted = entry if entry is None or isinstance(entry, Answer) else self._driver.run(entry)
        if isinstance(admitted, Answer):
            return _response(admitted)
        if admitted is None:
            return self.get_response(request)
        try:
            with Keeper(self._driver, admitted, beat_every(admitted.ttl, BEAT_EVERY_S)):
                response = self.get_response(request)
        except Exception as error:
            self._driver.run(self.rules.release(admitted, type(error).__name__))
            raise
        told = self._driver.run(self._leave(admitted, response))
        return response if told is None else _response(told)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        entry = self._enter(request)
        admitted = entry if entry is None or isinstance(entry, Answer) else await self._driver.arun(entry)
        if isinstance(admitted, Answer):
            return _response(admitted)
        if admitted is None:
            return await self.get_response(request)
        try:
            async with AsyncKeeper(self._driver, admitted, beat_every(admitted.ttl, BEAT_EVERY_S)):
                response = await self.get_response(request)
        except Exception as error:
            if isinstance(error, LeaseLost) and admitted.lost:
                return _response(in_flight(admitted))
            await self._driver.arun(self.rules.release(admitted, type(error).__name__))
            raise
        told = await self._driver.arun(self._leave(admitted, response))
        return response if told is None else _response(told)

    def _enter(self, request: HttpRequest) -> Flow[Lease | Answer | None] | Answer | None:
        """What to ask the server about a request; or what to answer; or None for one that is not guarded."""
        incoming = _incoming(request, b"")
        key = self.rules.key(incoming)
        if key is None or isinstance(key, Answer):
            return key
        limit = self.rules.max_body_bytes
        told = request.META.get("CONTENT_LENGTH") or ""
        if told.isdecimal() and int(told) > limit:
            return self.rules.too_large()
        body = request.body
        return (
            self.rules.too_large() if len(body) > limit else self.rules.admit(_incoming(request, body), key)
        )

    def _leave(self, lease: Lease, response: HttpResponseBase) -> Flow[Answer | None]:
        """What the caller gets instead of the response; None for the response itself."""
        if response.streaming:
            yield from self.rules.pass_through(lease, response.status_code)
            return None
        given = Answer(response.status_code, tuple(response.items()), response.content)
        told = yield from self.rules.keep(lease, given)
        return None if told is given else told


def _incoming(request: HttpRequest, body: bytes) -> Incoming:
    headers = {name.lower(): value for name, value in request.headers.items()}
    query = request.META.get("QUERY_STRING", "")
    return Incoming(request.method or "", request.path, query, headers, request, body)


def _response(answer: Answer) -> HttpResponse:
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
