"""Load over HTTP, as cheap as Python allows: connections that are kept alive, each asking again as soon as it is
answered.

It shares the machine with what it measures, so it does as little as it can: raw sockets on uvloop, no HTTP library,
and of each answer only its status line, its length and the words that it must hold.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

from benchmarks.figures import Case, percentile_ms

CONNECTIONS = 32
LONGEST_S = 60.0
"""An answer that takes longer than this ends the measurement."""


@dataclass(frozen=True)
class Target:
    """What is asked: body makes the request of a number, which counts up from 0; expect must be in each answer."""

    port: int
    path: str
    api_key: str
    body: Callable[[int], bytes]
    expect: bytes
    host: str = "127.0.0.1"

    @property
    def head(self) -> bytes:
        lines = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}",
            f"Authorization: Bearer {self.api_key}",
            "Content-Type: application/json",
            "Content-Length: ",
        )
        return "\r\n".join(lines).encode()


@dataclass
class Round:
    """What one round of load came to."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    asked: int = 0
    wrong: list[bytes] = field(default_factory=list)
    """Answers that were not the expected one."""

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    def case(self) -> Case:
        """Raises RuntimeError where an answer was wrong: then it measured something else."""
        if self.wrong:
            shown = self.wrong[0].decode(errors="replace")
            raise RuntimeError(f"{len(self.wrong)} of {self.asked} answers are wrong, the first is:\n{shown}")
        ordered = sorted(self.latencies_s)
        return {
            "per_second": self.per_second,
            "p50_ms": percentile_ms(ordered, 0.5),
            "p99_ms": percentile_ms(ordered, 0.99),
        }


class _Run:
    """The state that all connections share."""

    def __init__(self, target: Target, seconds: float, limit: int | None) -> None:
        self.target, self.seconds, self.limit = target, seconds, limit
        self.head, self.round = target.head, Round()
        self.started = self.ends_at = 0.0
        self.open = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next(self, now: float) -> bytes | None:
        """The next request; None when it is time to end."""
        number = self.round.asked
        if now >= self.ends_at or number == self.limit:
            return None
        self.round.asked = number + 1
        body = self.target.body(number)
        return b"%b%d\r\n\r\n%b" % (self.head, len(body), body)

    def closed(self, error: Exception | None) -> None:
        self.open -= 1
        if not self.done.done():
            if error is not None:
                self.done.set_exception(error)
            elif self.open == 0:
                self.done.set_result(None)


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._rest = b""
        self._asked_at = 0.0
        self._asking = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has classes of its own
        self._run.open += 1

    def ask(self, now: float) -> None:
        request = self._run.next(now)
        if request is None:
            self._asking = False
            self._transport.close()
            return
        self._asking, self._asked_at = True, now
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if len(data) < _length(data):
            self._rest = data
            return
        self._rest = b""
        now = time.perf_counter()
        done = self._run.round
        done.latencies_s.append(now - self._asked_at)
        if not data.startswith(b"HTTP/1.1 200") or self._run.target.expect not in data:
            done.wrong.append(data)
        self.ask(now)

    def connection_lost(self, error: Exception | None) -> None:
        if self._asking and error is None:
            error = ConnectionError("the server hung up on a request")
        self._run.closed(error)


def _length(data: bytes) -> int:
    """How long the answer is that begins with this; more than it has where that can't be told yet."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return len(data) + 1
    at = data.find(b"content-length: ", 0, end)
    return end + 4 + int(data[at + 16 : data.find(b"\r", at)])


def run(target: Target, seconds: float, limit: int | None = None, connections: int = CONNECTIONS) -> Round:
    """Ask from all connections for this long, or until so many are asked. Every request is answered at the end."""
    gc.collect()
    gc.disable()  # a pause of the load generator would be a latency of the server
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(target, seconds, limit, connections))
    finally:
        gc.enable()


async def _run(target: Target, seconds: float, limit: int | None, connections: int) -> Round:
    loop = asyncio.get_running_loop()
    shared = _Run(target, seconds, limit)
    made = [
        (await loop.create_connection(lambda: _Connection(shared), target.host, target.port))[1]
        for _ in range(connections)
    ]
    shared.started = time.perf_counter()
    shared.ends_at = shared.started + seconds
    for connection in made:
        connection.ask(time.perf_counter())
    await asyncio.wait_for(shared.done, seconds + LONGEST_S)
    shared.round.seconds = time.perf_counter() - shared.started
    return shared.round
