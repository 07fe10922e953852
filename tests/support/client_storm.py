"""Processes whose threads call one decorated function. Started by test_client_processes.py, not collected."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from onceonly_jobs import OnceOnly, idempotent_ai

PROCESSES, THREADS = 4, 50
PATIENCE_S = 60.0


class Receipt(BaseModel):
    order: int
    charged: int


def call_from_everywhere(client: OnceOnly, other: OnceOnly, key: str, effects: Path) -> list[Any]:
    """What each thread of each process got from the function. It leaves a line in `effects` when it runs.

    Half of the processes use the other client.
    """
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(PROCESSES * THREADS), context.Queue()
    processes = [
        context.Process(target=_process, args=(used, key, effects, barrier, answers), daemon=True)
        for used in (client, other) * (PROCESSES // 2)
    ]
    for process in processes:
        process.start()
    try:
        return [answers.get(timeout=PATIENCE_S) for _ in range(PROCESSES * THREADS)]
    finally:
        for process in processes:
            process.join(PATIENCE_S)
            process.kill()


def _process(client: OnceOnly, key: str, effects: Path, barrier: Barrier, answers: Any) -> None:
    @idempotent_ai(client, key_fn=lambda order: f"{key}:{order}", ttl=60, unwrap=True)
    def charge(order: int) -> Receipt:
        with effects.open("a") as file:
            file.write(f"{order}\n")
        return Receipt(order=order, charged=1)

    def call(_: int) -> None:
        try:
            barrier.wait(PATIENCE_S)
            answers.put(charge(7))
        except BaseException as error:
            barrier.abort()
            answers.put(repr(error))
            raise

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, range(THREADS)))
