"""What the database knows, for Prometheus: read when it is scraped, and not too often."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.services import figures
from onceonly_jobs.services.figures import Figures
from onceonly_jobs.services.workers import WorkerState
from onceonly_jobs.store.database import Database

logger = logging.getLogger(__name__)

PAUSE_S = 5.0
"""Between two readings, at least."""
SHARE = 20
"""A reading that took long is followed by a pause of so many times its length."""


class DatabaseFigures(Collector):
    """Gauges of how things stand, and counters of what happened since this process began to read.

    While the database is away there are no gauges: an old figure looks like a good one.
    """

    def __init__(self, database: Database, pause_s: float = PAUSE_S, share: float = SHARE) -> None:
        self._database = database
        self._pause_s = pause_s
        self._share = share
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._latest: Figures | None = None
        self._since: int | None = None
        self._ended: Counter[tuple[str, str]] = Counter()
        self._dead_letters: Counter[str] = Counter()
        self._spend: Counter[str] = Counter()
        self._decided: Counter[tuple[str, str]] = Counter()

    def describe(self) -> Iterable[Metric]:
        """The metrics without their values; asks nobody."""
        return [*_standing(None), *self._counted()]

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() >= self._next_at:
                self._read()
            return [*_standing(self._latest), *self._counted()]

    def _read(self) -> None:
        started = time.monotonic()
        try:
            self._latest = self._database.run(figures.read, self._since)
        except Exception as error:
            logger.warning("figures not read: %s", brief(error))
            self._latest = None
            self._next_at = time.monotonic() + self._pause_s
        else:
            self._add(self._latest)
            took_s = time.monotonic() - started
            self._next_at = time.monotonic() + max(self._pause_s, self._share * took_s)

    def _add(self, latest: Figures) -> None:
        self._since = latest.read_until
        for ended in latest.ended:
            self._ended[ended.job, ended.outcome] += ended.count
            self._dead_letters[ended.job] += ended.dead_letters
            self._spend[ended.job] += ended.spend_micro_usd
        for decided in latest.decided:
            self._decided[decided.decision, decided.reason] += decided.count

    def _counted(self) -> list[Metric]:
        ended = CounterMetricFamily(
            "onceonly_runs_ended",
            "Runs that ended: completed, failed, cancelled",
            labels=["job_name", "outcome"],
        )
        dead = CounterMetricFamily(
            "onceonly_dead_letters", "Runs that used up their attempts", labels=["job_name"]
        )
        spend = CounterMetricFamily(
            "onceonly_spend_micro_usd", "What ended runs were charged to their agents", labels=["job_name"]
        )
        decisions = CounterMetricFamily(
            "onceonly_decisions", "Decisions on runs and tool calls", labels=["decision", "reason"]
        )
        for labels, count in self._ended.items():
            ended.add_metric(labels, count)
        for family, by_job in ((dead, self._dead_letters), (spend, self._spend)):
            for job, total in by_job.items():
                family.add_metric([job], total)
        for labels, count in self._decided.items():
            decisions.add_metric(labels, count)
        return [ended, dead, spend, decisions]


def _standing(latest: Figures | None) -> list[Metric]:
    due = GaugeMetricFamily("onceonly_queue_due_runs", "Runs that are due and not claimed", labels=["queue"])
    delayed = GaugeMetricFamily(
        "onceonly_queue_delayed_runs", "Queued runs that are not due yet", labels=["queue"]
    )
    oldest = GaugeMetricFamily(
        "onceonly_queue_oldest_due_seconds", "For how long the oldest due run has been due", labels=["queue"]
    )
    running = GaugeMetricFamily("onceonly_runs_in_progress", "Runs that workers hold", labels=["job_name"])
    workers = GaugeMetricFamily(
        "onceonly_workers", "Workers that report: serving, draining, stuck", labels=["state"]
    )
    lag = GaugeMetricFamily(
        "onceonly_relay_lag_seconds", "For how long the first run in line has waited to be published"
    )
    unknown = GaugeMetricFamily("onceonly_unknown_calls", "Calls of unknown outcome, to be settled")
    dead = GaugeMetricFamily("onceonly_dead_letters_waiting", "Dead letters, to be replayed or discarded")
    overdue = GaugeMetricFamily(
        "onceonly_schedule_overdue_seconds", "For how long the first tick in line has waited to be served"
    )
    if latest is not None:
        for queue in latest.waiting:
            due.add_metric([queue.queue], queue.due)
            delayed.add_metric([queue.queue], queue.delayed)
            oldest.add_metric([queue.queue], queue.oldest_due_s)
        for job, count in latest.running.items():
            running.add_metric([job], count)
        for state in WorkerState:  # none at all is what somebody wants to know of
            workers.add_metric([state.value], latest.workers.get(state.value, 0))
        lag.add_metric([], latest.moment.relay_lag_s)
        unknown.add_metric([], latest.moment.unknown)
        dead.add_metric([], latest.moment.dead)
        overdue.add_metric([], latest.moment.tick_overdue_s)
    return [due, delayed, oldest, running, workers, lag, unknown, dead, overdue]
