"""The Celery app: `celery -A workers.app worker`, and `celery -A workers.app beat` for the scheduler."""

from onceonly_jobs.worker.app import create_worker
from workers import handlers  # noqa: F401 - registers the jobs

app = create_worker()
