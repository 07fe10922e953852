"""`celery beat` with our relay in it: every tick also publishes due runs and reaps expired claims."""

from __future__ import annotations

import time
from typing import Any

from celery import beat

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.dispatch.relay import Relay
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.app import touch_ready_file
from onceonly_jobs.worker.courier import Courier


def make_relay(settings: Settings) -> Relay:
    """A relay with connections of its own, and a courier of notifications beside it."""
    Courier(settings).start()
    database = Database(settings.require_database_url(), pool_size=2)
    return Relay(settings, database, Publisher(settings), HintSender(settings))


class Scheduler(beat.Scheduler):  # type: ignore[misc]
    """Keeps the app's own `beat_schedule` in memory, as Celery's does, and drives the relay."""

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **options: Any) -> None:
        super().__init__(app, *args, lazy=lazy, **options)
        self._relay = None if lazy else make_relay(app.onceonly.settings)
        self._relay_at = 0.0
        self._ready = False

    @property
    def info(self) -> str:
        return "    . relay -> due runs, expired claims"

    def tick(self, *args: Any, **options: Any) -> float:
        """Send what is due. Returns seconds until the next call."""
        delay_s = float(super().tick(*args, **options) or 0)
        if self._relay is None:
            return delay_s
        if time.monotonic() >= self._relay_at:
            self._relay_at = time.monotonic() + self._relay.tick()
            self._say_ready()
        return max(0.0, min(delay_s, self._relay_at - time.monotonic()))

    def _say_ready(self) -> None:
        if not self._ready:
            self._ready = True
            touch_ready_file()
