"""A Celery app whose `beat_schedule` has a signal come while the main thread of its scheduler is in a destructor."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery.schedules import schedstate, schedule

from onceonly_jobs.worker.app import create_worker

NUMBER = signal.Signals[os.environ["SIGNALLED_BY"]]
READY_FILE = "ONCEONLY_READY_FILE"


class Dying:
    """An exception that is raised in here is reported, and lost."""

    def __del__(self) -> None:
        signal.raise_signal(NUMBER)


class Signalled(schedule):  # type: ignore[misc]
    """Never due. Asked when, once the scheduler serves, it sends the signal."""

    sent = False

    def is_due(self, _last_run_at: Any) -> schedstate:
        if not Signalled.sent and os.path.exists(os.environ[READY_FILE]):  # noqa: PTH110
            Signalled.sent = True
            Dying()
        return schedstate(False, 0.1)


app = create_worker()
app.conf.beat_schedule = {"signalled": {"task": "none", "schedule": Signalled(60)}}
