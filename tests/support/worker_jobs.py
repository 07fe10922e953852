"""Jobs that behave in all the ways a handler can. `payload.witness` names a file that each start leaves a line in."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Task, signals
from pydantic import BaseModel

from onceonly_jobs import Fail, JobContext, Retry, ToolContext, job, tool


def _witness(ctx: JobContext) -> None:
    """Count an effect where the code under test can't reach."""
    path = ctx.payload.get("witness")
    if path:
        with Path(path).open("a") as file:
            file.write(f"{ctx.key} {ctx.attempt} {os.getpid()}\n")


@job(max_attempts=5)
def effect(ctx: JobContext) -> dict[str, Any]:
    """Leaves a trace, takes its time, returns."""
    _witness(ctx)
    time.sleep(ctx.payload.get("sleep_s", 0))
    return {"attempt": ctx.attempt, "pid": os.getpid()}


@job(max_attempts=5)
def looks_at_the_clock(ctx: JobContext) -> dict[str, Any]:
    """What the time of day is before and after its sleep, as its process sees it."""
    _witness(ctx)
    before = time.time()
    time.sleep(ctx.payload["sleep_s"])
    return {"looked": [before, time.time()]}


@job(max_attempts=5)
def slow_first(ctx: JobContext) -> dict[str, Any]:
    """Takes a minute in its first attempt only."""
    _witness(ctx)
    if ctx.attempt == 1:
        time.sleep(60)
    return {"attempt": ctx.attempt}


@job(max_attempts=5)
def waits_first(ctx: JobContext) -> dict[str, Any]:
    """Waits for a file in its first attempt only, and looks neither left nor right."""
    _witness(ctx)
    while ctx.attempt == 1 and not Path(ctx.payload["file"]).exists():
        time.sleep(0.05)
    Path(f"{ctx.payload['file']}.seen").touch()
    return {"attempt": ctx.attempt}


@job(max_attempts=1)
def sleeper(ctx: JobContext) -> None:
    """One long blocking call."""
    _witness(ctx)
    time.sleep(60)


@job(max_attempts=1, time_limit_s=1)
def limited(ctx: JobContext) -> None:
    """One long blocking call, under a time limit."""
    try:
        time.sleep(60)
    except Exception:
        ctx.log("swallowed")  # an interruption must not end here


@job(max_attempts=1, time_limit_s=1)
async def limited_async(ctx: JobContext) -> None:
    """The same in a coroutine."""
    _witness(ctx)
    await asyncio.sleep(60)


@job(max_attempts=1, time_limit_s=1)
def stubborn(ctx: JobContext) -> None:
    """Can't be interrupted."""
    while True:
        try:
            time.sleep(60)
        except BaseException:
            _witness(ctx)


@job(max_attempts=1)
def deaf(ctx: JobContext) -> None:
    """Can't be interrupted, and has no time limit."""
    _witness(ctx)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


@job
def dies_after(ctx: JobContext) -> dict[str, Any]:
    """Its process dies when its result is stored, before Celery hears of it."""
    return {"attempt": ctx.attempt}


@signals.task_postrun.connect
def _die_after(sender: Task, **_: Any) -> None:
    if sender.name == "dies_after":
        os.kill(os.getpid(), signal.SIGKILL)


@job(max_attempts=1, max_crashes=1)
def hog(ctx: JobContext) -> None:
    """Holds the interpreter: no other thread of its process runs, the heartbeat's included."""
    _witness(ctx)
    ctypes.PyDLL(None).sleep(120)


@job(max_attempts=3)
async def asynchronous(ctx: JobContext) -> dict[str, Any]:
    """A coroutine."""
    await asyncio.sleep(0)
    return {"attempt": ctx.attempt}


@job(max_attempts=1)
def patient(ctx: JobContext) -> None:
    """Works in small steps, and looks up between them."""
    _witness(ctx)
    for step in range(600):
        ctx.check()
        ctx.progress({"step": step})
        time.sleep(0.1)


@job(max_attempts=3, retry_base_s=0.1, retry_max_s=0.2)
def flaky(ctx: JobContext) -> dict[str, Any]:
    """Fails `payload.failures` times."""
    _witness(ctx)
    if ctx.attempt <= ctx.payload["failures"]:
        raise ValueError("not yet\x00")
    return {"attempt": ctx.attempt, "key": ctx.idempotency_key("pay"), "other": ctx.idempotency_key("mail")}


@job(max_attempts=9, retry_base_s=0.1, retry_on=OSError, give_up_on=FileNotFoundError)
def picky(ctx: JobContext) -> None:
    """Raises what is worth another attempt, then what is not."""
    _witness(ctx)
    raise TimeoutError(ctx.attempt) if ctx.attempt == 1 else FileNotFoundError(ctx.attempt)


@job(max_attempts=3)
def asks_again(ctx: JobContext) -> dict[str, Any]:
    """Asks for another attempt."""
    if ctx.attempt == 1:
        raise Retry(0, "the other side is busy")
    return {"attempt": ctx.attempt}


@job(max_attempts=3)
def gives_up(ctx: JobContext) -> None:
    """Fails for good at once."""
    raise Fail("no_such_customer", "customer 7 is unknown")


@job(max_crashes=2)
def dies(ctx: JobContext) -> None:
    """Takes its process with it."""
    _witness(ctx)
    os.kill(os.getpid(), signal.SIGKILL)


@job
def stops_first(ctx: JobContext) -> dict[str, Any]:
    """Its process stops in its first attempt, with all its threads, until somebody lets it go on."""
    _witness(ctx)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return {"attempt": ctx.attempt}


@job(max_crashes=2)
def exits(ctx: JobContext) -> None:
    """Ends its process in the orderly way."""
    _witness(ctx)
    sys.exit(3)


class Model(BaseModel):
    at: Path


@dataclass
class Data:
    n: int


RETURNS: dict[str, Any] = {
    "nothing": None,
    "list": [1, 2],
    "number": 1.5,
    "model": Model(at=Path("/x")),
    "dataclass": Data(3),
    "object": object(),
    "nul": {"a": "\x00"},
    "surrogate": {"a": "\ud800"},
    "nan": {"a": float("nan")},
    "huge": {"a": 2**70},
    "keys": {1: "a"},
    "large": {"a": "x" * 1_048_576},
    "deep": json.loads('{"a":' * 66 + "1" + "}" * 66),
}


@job(max_attempts=1)
def returns(ctx: JobContext) -> Any:
    """Returns the thing that the payload names."""
    return RETURNS[ctx.payload["what"]]


@tool("add", effect="read")
def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


@tool("told", effect="idempotent")
async def told(call: ToolContext, path: Path) -> dict[str, Any]:
    """Says what it knows of its call."""
    return {
        "agent": call.agent_id,
        "key": call.idempotency_key,
        "run_id": call.run_id,
        "path": path.name,
        "cost_usd": 0.25,
    }


@tool("returns_tool", effect="idempotent")
def returns_tool(what: str) -> Any:
    """Returns the thing of that name."""
    return RETURNS[what]


def breaks(how: str, witness: str) -> dict[str, Any]:
    """Leaves a line, then ends badly in the given way; from the second time on it ends well, if it can."""
    path = Path(witness)
    with path.open("a") as lines:
        lines.write("called\n")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("broken")
    if how == "fail":
        raise Fail("out_of_stock", "none left")
    if how == "hang":
        time.sleep(60)
    if how == "retry" and len(path.read_text().splitlines()) < 2:
        raise Retry(0, "not yet")
    return {"calls": len(path.read_text().splitlines())}


tool("break_once")(breaks)
tool("break_again", effect="idempotent", timeout_ms=2000, max_attempts=2)(breaks)


@tool("break_asked", effect="reconcilable", confirm=lambda key, args: args["said"])
def break_asked(how: str, witness: str, said: Any) -> dict[str, Any]:
    """Ends badly, and can be asked whether it happened."""
    return breaks(how, witness)
