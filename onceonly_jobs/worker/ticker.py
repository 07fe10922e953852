"""The scheduler of `/schedules`: makes the runs of ticks when they come due. Any number may run at once."""

from __future__ import annotations

import logging
import random
import threading
import time

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.background import BackgroundPublisher
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.domain.schedules import TickState
from onceonly_jobs.services import ticks
from onceonly_jobs.services.ticks import Served
from onceonly_jobs.store.database import Database, may_pass, unreachable
from onceonly_jobs.store.schedules import Name
from onceonly_jobs.worker.runtime import scheduler_silence_s

logger = logging.getLogger(__name__)

BATCH = 100
LONGEST_WAIT_S = 1.0
"""A new or changed schedule is noticed after this at the latest."""
LEAST_WAIT_S = 0.005
SPREAD_S = 0.03
"""A random share of the wait, so that two schedulers do not always meet at the same row."""
MAX_PAUSE_S = 5.0
REST_S = 60.0
"""How long a schedule that can't be served is left alone."""
TIDY_EVERY_S = 60.0
TIDY_BATCH = 5000


class Ticker:
    """Serves due schedules, each in a transaction of its own."""

    def __init__(
        self, settings: Settings, database: Database, publisher: BackgroundPublisher, hints: HintSender
    ) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._hints = hints
        self._resting: dict[Name, float] = {}
        self._failures = 0
        self._tidy_at = 0.0

    def run_forever(self, stop: threading.Event) -> None:
        """Tick until `stop` is set."""
        while not stop.is_set():
            stop.wait(self.tick())

    def tick(self) -> float:
        """Serve what is due now. Returns in how many seconds to come again; never raises."""
        try:
            wait_s = self._serve_due()
        except Exception as error:
            level = logging.WARNING if self._failures == 0 else logging.DEBUG
            logger.log(level, "serving schedules failed, trying again: %s", brief(error))
            self._failures += 1
            return random.uniform(0.5, 1) * min(MAX_PAUSE_S, 0.2 * 2.0 ** min(self._failures, 10))  # noqa: S311
        if self._failures:
            logger.info("schedules are served again")
        self._failures = 0
        return wait_s

    def _serve_due(self) -> float:
        resting = self._still_resting()
        names = self._database.run(ticks.due, BATCH, resting)
        random.shuffle(names)
        for name in names:
            self._serve(name)
        self._tidy()
        left_s = self._database.run(ticks.next_due_in_s, self._still_resting())
        wait_s = LONGEST_WAIT_S if left_s is None else min(max(left_s, LEAST_WAIT_S), LONGEST_WAIT_S)
        return wait_s + random.uniform(0, SPREAD_S)  # noqa: S311

    def _serve(self, name: Name) -> None:
        try:
            served = self._database.run(ticks.serve, name, self._settings)
        except Exception as error:
            if unreachable(error) or may_pass(error):
                raise
            logger.exception("schedule %s of %s can't be served", name.name, name.tenant_id)
            self._resting[name] = time.monotonic() + REST_S
            return
        if served is not None:
            self._tell(name, served)

    def _tell(self, name: Name, served: Served) -> None:
        for due in served.due:
            self._publisher.submit(due)
        for key in served.cancelled:
            self._hints.finished(name.tenant_id, key)
        for tick in served.ticks:
            metrics.count(metrics.SCHEDULE_TICKS, tick.state.value)
            late_s = max(0.0, (served.at - tick.tick_at).total_seconds())
            metrics.observe(metrics.TICK_DELAY, tick.state.value, seconds=late_s)
            level = logging.INFO if tick.state is TickState.FIRED else logging.WARNING
            logger.log(level, "tick %s %s%s", tick.key, tick.state, f": {tick.detail}" if tick.detail else "")

    def _still_resting(self) -> list[Name]:
        now = time.monotonic()
        self._resting = {name: until for name, until in self._resting.items() if until > now}
        return list(self._resting)

    def _tidy(self) -> None:
        """Forget old history now and then."""
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_EVERY_S
            while self._database.run(ticks.forget_old, self._settings.retention_s, TIDY_BATCH) == TIDY_BATCH:
                pass


class TickerThread:
    """A ticker in a thread of its own: neither a slow broker nor a long relay round makes a tick late."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(
            settings.require_database_url(), pool_size=1, silence_s=scheduler_silence_s(settings)
        )
        self._publisher = BackgroundPublisher(settings)
        self._hints = HintSender(settings)
        self._ticker = Ticker(settings, self._database, self._publisher, self._hints)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._ticker.run_forever, args=(self._stop,), name="ticker", daemon=True
        )

    def start(self) -> None:
        """Begin, if it has not."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Let it finish what it has begun, and stop it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(MAX_PAUSE_S)
        self._publisher.close()
