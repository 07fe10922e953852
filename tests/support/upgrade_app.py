"""The Celery app of workers of either version: its jobs leave lines that say which version started them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onceonly_jobs
from onceonly_jobs import JobContext, Retry, job
from onceonly_jobs.worker.app import create_worker

SITE = Path(onceonly_jobs.__file__).parents[1]
VERSION = "old" if SITE.name == "old" else "new"


def witness(ctx: JobContext) -> None:
    with Path(os.environ["ONCEONLY_TEST_WITNESS"]).open("a") as lines:
        lines.write(f"{ctx.key} {ctx.attempt} {ctx.fencing_token} {VERSION} {os.getpid()}\n")


@job(match="work:*", max_attempts=5)
def work(ctx: JobContext) -> dict[str, Any]:
    """Done at the first try."""
    witness(ctx)
    return {"key": ctx.key}


@job(match="again:*", max_attempts=8)
def again(ctx: JobContext) -> dict[str, Any]:
    """Asks for another attempt, again and again, which any worker may get."""
    witness(ctx)
    if ctx.attempt < 8:
        raise Retry(0.0, "not yet")
    return {"key": ctx.key}


app = create_worker()
