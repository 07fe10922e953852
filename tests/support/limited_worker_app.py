"""Unhurried workers, of which Celery is to begin no more tasks than so many a second."""

from support.unhurried_worker_app import app

app.conf.task_default_rate_limit = "1000/s"
