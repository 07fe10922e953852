"""A Celery app as a deployment must not configure it: late acknowledgement, prefetching, a short visibility timeout."""

import os
from pathlib import Path
from typing import Any

from celery import signals
from support import worker_jobs  # noqa: F401 - registers the jobs

from onceonly_jobs.worker.app import create_worker

app = create_worker()
app.conf.worker_disable_prefetch = False
app.conf.worker_prefetch_multiplier = int(os.environ.get("REDELIVERING_PREFETCH", "1"))
app.conf.broker_transport_options |= {"visibility_timeout": int(os.environ["REDELIVERING_TIMEOUT_S"])}
for task in app.tasks.values():
    task.acks_late = os.environ.get("REDELIVERING_LATE") == "1"


@signals.task_prerun.connect
def _count(kwargs: dict[str, Any], **_: Any) -> None:
    if "run" in kwargs:
        with Path(os.environ["REDELIVERING_FILE"]).open("a") as file:
            file.write(f"{kwargs['run']}\n")
