"""The Celery app of the workers that tests start."""

from support import worker_jobs  # noqa: F401 - registers the jobs

from onceonly_jobs.worker.app import create_worker

app = create_worker()
