"""Client processes with many threads each, which call a governed agent's tools all at once, and again and again."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any, Self

import httpx

PATIENCE_S = 120.0
PAUSE_S = 0.02
"""After a call without an answer: an API process may be gone, and another one be asked next."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What became of one call. Without an answer, its status is None."""

    number: int
    sent: Body
    status: int | None
    body: Any

    @property
    def told(self) -> dict[str, Any]:
        """The decision, whichever status it came with."""
        found: dict[str, Any] = self.body if self.status == 200 else self.body["detail"]
        return found


class Callers:
    """Started once, for any number of storms."""

    def __init__(self, base_urls: Sequence[str], api_key: str, processes: int = 5, threads: int = 10) -> None:
        context = multiprocessing.get_context("spawn")
        self._threads = threads
        self._size = processes * threads
        self._over: Event = context.Event()
        self._barrier: Barrier = context.Barrier(self._size)  # kept: it ends with its last reference here
        pipes = [context.Pipe() for _ in range(processes)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(
                target=_caller,
                args=(list(base_urls), api_key, threads, theirs, self._barrier, self._over),
                daemon=True,
            )
            for _, theirs in pipes
        ]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def start(self, bodies: Sequence[Body]) -> None:
        """Let each thread make its share of the calls, one after the other; all begin at once."""
        self._over.clear()
        shares = [list(enumerate(bodies))[thread :: self._size] for thread in range(self._size)]
        for number, pipe in enumerate(self._pipes):
            pipe.send(shares[number :: len(self._pipes)])

    def stop(self) -> None:
        """Make no further calls."""
        self._over.set()

    def answers(self) -> list[Answer]:
        """Every call that was made, in the order of the bodies, once the storm is over."""
        answers: list[Answer] = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            assert pipe.poll(PATIENCE_S), f"the storm was not over after {PATIENCE_S:g} s"
            assert process.is_alive(), "a client has died"
            answers += pipe.recv()
        return sorted(answers, key=lambda answer: answer.number)

    def storm(self, bodies: Sequence[Body]) -> list[Answer]:
        self.start(bodies)
        return self.answers()


def _caller(
    base_urls: list[str], api_key: str, threads: int, pipe: Connection, barrier: Barrier, over: Event
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(keepalive_expiry=2)  # the server ends idle connections after 5 s
    client = httpx.Client(headers=headers, limits=limits, timeout=60)
    with ThreadPoolExecutor(threads) as pool:
        while True:
            shares = pipe.recv()
            made = [
                pool.submit(_make, client, base_urls[n % 2 :] + base_urls[: n % 2], share, barrier, over)
                for n, share in enumerate(shares)
            ]
            pipe.send([answer for calls in made for answer in calls.result()])


def _make(
    client: httpx.Client, base_urls: list[str], share: list[tuple[int, Body]], barrier: Barrier, over: Event
) -> list[Answer]:
    answers = []
    barrier.wait(PATIENCE_S)
    for number, body in share:
        if over.is_set():
            break
        answers.append(_call(client, base_urls[0], number, body))
        if answers[-1].status is None:
            base_urls = [*base_urls[1:], base_urls[0]]
            time.sleep(PAUSE_S)
    return answers


def _call(client: httpx.Client, base_url: str, number: int, body: Body) -> Answer:
    try:
        answer = client.post(f"{base_url}/ai/run", json=body)
    except httpx.TransportError as error:
        return Answer(number, body, None, repr(error))
    return Answer(number, body, answer.status_code, answer.json())
