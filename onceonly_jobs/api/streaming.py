"""Server-Sent Events: their form, how many are open, and when they end."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from types import FrameType
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from onceonly_jobs.errors import TooManyStreams

PING = b": ping\n\n"
RETRY_MS = 2000
"""How long a client that lost its stream waits before it asks for the rest."""


def sse(event_id: int, body: dict[str, Any]) -> bytes:
    """One event. JSON escapes line breaks, so its data is one line."""
    return f"id: {event_id}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


class OpenStreams:
    """The streams of this process: counted, and told when the process is to end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._ended = asyncio.Event()

    def take(self) -> None:
        """Take a place. Raises TooManyStreams."""
        if self._open >= self._limit:
            raise TooManyStreams(self._limit)
        self._open += 1

    def give_back(self) -> None:
        self._open -= 1

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def end(self) -> None:
        """Let every stream end now."""
        self._ended.set()

    def end_with_the_process(self) -> None:
        """End the streams on the signals that stop the server: it would wait for them otherwise."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if not callable(before):
                continue

            def stopping(signum: int, frame: FrameType | None, before: Any = before) -> None:
                loop.call_soon_threadsafe(self.end)
                before(signum, frame)

            signal.signal(number, stopping)

    async def woken(self, event: asyncio.Event, timeout_s: float) -> None:
        """Return when the event is set, the streams are to end, or the time is over."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
                with suppress(asyncio.CancelledError):
                    await wait
        event.clear()


class EventStream(StreamingResponse):
    """A stream that holds one of the process's places until it ends. Raises TooManyStreams."""

    media_type = "text/event-stream"

    def __init__(self, streams: OpenStreams, content: AsyncIterator[bytes]) -> None:
        # Proxies that buffer would hold events back.
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._streams = streams
        streams.take()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.give_back()
