"""`celery beat` with our relay and our schedules in it: it publishes due runs, reaps expired claims, serves ticks."""

from __future__ import annotations

import time
from typing import Any

from celery import beat

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.dispatch.figures import DatabaseFigures
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.dispatch.relay import Relay
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.courier import Courier
from onceonly_jobs.worker.files import ALIVE_FILE, READY_FILE, touch
from onceonly_jobs.worker.janitor import Janitor
from onceonly_jobs.worker.operators import start_exporter
from onceonly_jobs.worker.runtime import scheduler_silence_s
from onceonly_jobs.worker.stopping import StopSignals
from onceonly_jobs.worker.ticker import TickerThread


def make_relay(settings: Settings) -> Relay:
    """A relay with connections of its own, and a courier of notifications and a janitor beside it."""
    Courier(settings).start()
    Janitor(settings).start()
    database = Database(settings.require_database_url(), pool_size=2, silence_s=scheduler_silence_s(settings))
    return Relay(settings, database, Publisher(settings), HintSender(settings))


def show_figures(settings: Settings) -> None:
    """`/metrics` of a scheduler, where the settings ask for it: its own figures and those of the database."""
    if settings.scheduler_metrics_port:
        database = Database(
            settings.require_database_url(), pool_size=1, silence_s=scheduler_silence_s(settings)
        )
        figures = DatabaseFigures(database)
        figures.collect()  # what happens from here on is counted, whenever it is asked for
        metrics.REGISTRY.register(figures)
        start_exporter(settings, settings.scheduler_metrics_port)


class Scheduler(beat.Scheduler):  # type: ignore[misc]
    """Keeps the app's own `beat_schedule` in memory, as Celery's does, and drives the relay and the ticker."""

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **options: Any) -> None:
        super().__init__(app, *args, lazy=lazy, **options)
        self._relay = None if lazy else make_relay(app.onceonly.settings)
        if not lazy:
            show_figures(app.onceonly.settings)
        self._ticker = None if lazy else TickerThread(app.onceonly.settings)
        self._relay_at = 0.0
        self._ready = False
        self._stop = StopSignals()
        if not lazy:
            self._stop.listen()

    @property
    def info(self) -> str:
        return "    . relay -> due runs, expired claims\n    . ticker -> schedules"

    def tick(self, *args: Any, **options: Any) -> float:
        """Send what is due, and wait until more is. Returns seconds until the next call.

        Raises SystemExit once this process is told to end.
        """
        delay_s = float(super().tick(*args, **options) or 0)
        if self._relay is None or self._ticker is None:
            return delay_s
        self._ticker.start()
        if time.monotonic() >= self._relay_at:
            self._relay_at = time.monotonic() + self._relay.tick()
            self._say_ready()
            touch(ALIVE_FILE)
        if self._stop.wait(min(delay_s, self._relay_at - time.monotonic())):
            raise SystemExit
        return 0.0

    def _say_ready(self) -> None:
        if not self._ready:
            self._ready = True
            touch(READY_FILE)

    def close(self) -> None:
        """Stop, once what has begun is done."""
        super().close()
        if self._ticker is not None:
            self._ticker.close()
