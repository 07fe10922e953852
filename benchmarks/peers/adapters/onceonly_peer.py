"""This project with its defaults, asked over HTTP through its own client. As a Celery app, its worker."""

import os
from typing import Any

from witness import say

from onceonly_jobs import JobContext, OnceOnly, job, tool

_open: list[OnceOnly] = []


@job("noop")
def noop(ctx: JobContext) -> dict[str, bool]:
    number = ctx.payload.get("n")
    if number is not None:
        say(number)
    return {"ok": True}


@tool("noop_tool", effect="idempotent")
def noop_tool(n: int) -> dict[str, bool]:
    return {"ok": True}


def __getattr__(name: str) -> Any:
    if name == "app":  # for the worker: a producer needs no server
        from onceonly_jobs.worker.app import create_worker

        return globals().setdefault("app", create_worker())
    raise AttributeError(name)


def open_up() -> None:
    _open.append(OnceOnly())


def _key(number: int) -> str:
    return f"{os.environ['BENCH_PREFIX']}:{number:08d}"


def send(number: int) -> None:
    _open[0].enqueue("noop", key=_key(number), payload={"n": number})


def call(number: int) -> None:
    metadata = {"task": "noop", "payload": {"n": number}}
    _open[0].ai.run_and_wait(_key(number), metadata=metadata)
