"""The app of a deployment with a job that is killed in its first attempt: copied to `workers/app.py` by a test."""

from __future__ import annotations

import os
import time
from pathlib import Path

from onceonly_jobs.worker.app import create_worker
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.jobs import Registry

jobs = Registry()


@jobs.job("survive", max_attempts=5)
def survive(ctx: JobContext) -> dict[str, int]:
    """Says who runs it, then hangs until it is killed; any later attempt ends at once."""
    mark = Path(ctx.metadata["mark"])
    if ctx.attempt == 1:
        mark.with_suffix(".new").write_text(str(os.getpid()))
        mark.with_suffix(".new").replace(mark)
        while True:
            time.sleep(0.05)
    return {"attempt": ctx.attempt, "fencing_token": ctx.fencing_token, "pid": os.getpid()}


app = create_worker(registry=jobs)
