"""A world for flows: it answers their requests from a script, and their time passes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from onceonly_jobs.client.leases import Work
from onceonly_jobs.client.settings import ClientSettings
from onceonly_jobs.client.wire import Context, Flow, Pause, Request, Send

T = TypeVar("T")
Reply = httpx.Response | Exception | Callable[[Request], Any]


class World:
    """Runs flows. `sent` is what they asked for, `pauses` how long they rested, `now` the time it took."""

    def __init__(self, *replies: Reply | tuple[float, Reply], **settings: Any) -> None:
        self.now = 0.0
        self.chance = 1.0
        self.sent: list[Request] = []
        self.pauses: list[float] = []
        self._replies = iter(replies)
        known = ClientSettings(**{"api_key": "once_live_x", "base_url": "http://test/v1", **settings})
        self.context = Context(known, clock=lambda: self.now, chance=lambda: self.chance)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.sent]

    def run(self, flow: Flow[T]) -> T:
        answer, error = None, None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as done:
                value: T = done.value
                return value
            answer, error = None, None
            try:
                answer = self._perform(step)
            except Exception as raised:
                error = raised

    def _perform(self, step: Any) -> Any:
        if isinstance(step, Pause):
            self.pauses.append(step.seconds)
            self.now += step.seconds
            return None
        if isinstance(step, Work):
            return step.function()
        assert isinstance(step, Send)
        self.sent.append(step.request)
        try:
            reply: Any = next(self._replies)
        except StopIteration:
            raise AssertionError(f"no reply left for {step.request}") from None
        if isinstance(reply, tuple):
            took, reply = reply
            self.now += took
        if callable(reply):
            reply = reply(step.request)
        if isinstance(reply, Exception):
            raise reply
        return reply


def ok(**body: Any) -> httpx.Response:
    return httpx.Response(200, json=body)


def refused(status: int, detail: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"detail": detail}, headers=named)
