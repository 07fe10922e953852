"""The worker of the installed product alone: `celery -A onceonly_jobs.worker.default worker`."""

from onceonly_jobs.worker.app import create_worker
from onceonly_jobs.worker.jobs import Registry

app = create_worker(registry=Registry())
