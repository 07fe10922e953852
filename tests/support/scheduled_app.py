"""A Celery app whose one job runs by itself, each second."""

from onceonly_jobs import JobContext
from onceonly_jobs.worker.app import create_worker
from onceonly_jobs.worker.jobs import Registry

registry = Registry()


@registry.job("by_itself", every_s=1, misfire="catch_up", payload={"from": "code"})
def by_itself(ctx: JobContext) -> dict[str, object]:
    """Says what it was started for."""
    return {"schedule": ctx.metadata["schedule"], "payload": ctx.payload}


app = create_worker(registry=registry)
