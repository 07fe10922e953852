"""Client processes that ask for the same keys at the same moment. Started by test_storm.py, not collected."""

from __future__ import annotations

import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any, Literal

import httpx
from onceonly import OnceOnly

Kind = Literal["check_lock", "lease", "run"]
PATHS: dict[Kind, str] = {"check_lock": "/check-lock", "lease": "/ai/lease", "run": "/ai/run"}
PATIENCE_S = 90.0
TIMEOUT_S = 30.0
TTL_S = 600


@dataclass(frozen=True)
class Storm:
    """Every thread asks for every key, in this order; for each key all of them wait for each other first."""

    kind: Kind
    base_urls: tuple[str, ...]
    api_key: str
    keys: tuple[str, ...]
    processes: int = 4
    threads_per_process: int = 8

    @property
    def threads(self) -> int:
        return self.processes * self.threads_per_process


@dataclass(frozen=True)
class Answer:
    """What one thread was told about one key."""

    thread: int
    base_url: str
    key: str
    status: str
    charged: int
    lease_id: str | None


Ask = Callable[[str], tuple[str, int, str | None]]


def break_loose(storm: Storm) -> list[Answer]:
    """Let it happen; every answer of every thread. Fails when a single call did."""
    context = multiprocessing.get_context("spawn")
    barrier, outcomes = context.Barrier(storm.threads), context.Queue()
    clients = [
        context.Process(target=_client, args=(storm, number, barrier, outcomes), daemon=True)
        for number in range(storm.processes)
    ]
    for client in clients:
        client.start()
    try:
        answers: list[Answer] = []
        deadline = time.monotonic() + PATIENCE_S
        for _ in clients:
            outcome = _next(outcomes, deadline)
            assert not isinstance(outcome, str), f"a client failed:\n{outcome}"
            answers += outcome
        for client in clients:
            client.join(PATIENCE_S)
            assert client.exitcode == 0
        return answers
    finally:
        for client in clients:
            if client.is_alive():
                client.kill()
            client.join()


def _next(outcomes: Any, deadline: float) -> list[Answer] | str:
    try:
        outcome: list[Answer] | str = outcomes.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise AssertionError(f"the storm was not over after {PATIENCE_S:g} s") from None
    return outcome


def _client(storm: Storm, number: int, barrier: Barrier, outcomes: Any) -> None:
    """A client process: its threads' answers, or the text of the first error."""
    first = number * storm.threads_per_process
    with ThreadPoolExecutor(storm.threads_per_process) as pool:
        threads = [
            pool.submit(_thread, storm, first + index, barrier) for index in range(storm.threads_per_process)
        ]
    errors = [error for thread in threads if (error := thread.exception()) is not None]
    # A broken barrier is what the other threads see of somebody's error.
    errors.sort(key=lambda error: isinstance(error, BrokenBarrierError))
    if errors:
        outcomes.put("".join(traceback.format_exception(errors[0])))
    else:
        outcomes.put([answer for thread in threads for answer in thread.result()])


def _thread(storm: Storm, thread: int, barrier: Barrier) -> list[Answer]:
    """Neighbours use different API processes; in turn they use the SDK and plain HTTP."""
    base_url = storm.base_urls[thread % len(storm.base_urls)]
    use_sdk = thread // len(storm.base_urls) % 2 == 0
    answers = []
    with ExitStack() as stack:
        try:
            ask = (_sdk if use_sdk else _plain)(storm, base_url, stack)
            for key in storm.keys:
                barrier.wait(PATIENCE_S)
                answers.append(Answer(thread, base_url, key, *ask(key)))
        except BaseException:
            barrier.abort()
            raise
    return answers


def _sdk(storm: Storm, base_url: str, stack: ExitStack) -> Ask:
    client = stack.enter_context(OnceOnly(storm.api_key, base_url, timeout=TIMEOUT_S, fail_open=False))
    client.me()  # connects

    def check_lock(key: str) -> tuple[str, int, str | None]:
        result = client.check_lock(key, ttl=TTL_S)
        assert result.locked is not result.duplicate
        return ("locked" if result.locked else "duplicate"), 0, None

    def lease(key: str) -> tuple[str, int, str | None]:
        answer = client.ai.lease(key, ttl=TTL_S)
        return answer["status"], answer["charged"], answer["lease_id"]

    def run(key: str) -> tuple[str, int, str | None]:
        answer = client.ai.run(key, ttl=TTL_S)
        return answer.status, answer.charged, answer.lease_id

    return {"check_lock": check_lock, "lease": lease, "run": run}[storm.kind]


def _plain(storm: Storm, base_url: str, stack: ExitStack) -> Ask:
    headers = {"Authorization": f"Bearer {storm.api_key}"}
    client = stack.enter_context(httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S))
    client.get("/me").raise_for_status()

    def ask(key: str) -> tuple[str, int, str | None]:
        answer = client.post(PATHS[storm.kind], json={"key": key, "ttl": TTL_S}).raise_for_status().json()
        return answer["status"], answer.get("charged", 0), answer.get("lease_id")

    return ask
