"""Built-in jobs."""

from __future__ import annotations

from typing import Any

from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.jobs import Registry

builtin = Registry()


@builtin.job
def echo(ctx: JobContext) -> dict[str, Any]:
    """Returns what it was given; the default job, for development."""
    return {"key": ctx.key, "metadata": ctx.metadata, "attempt": ctx.attempt}
