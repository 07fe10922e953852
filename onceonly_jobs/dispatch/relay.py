"""What is due goes to the broker, and what dead workers held comes back. Any number may run at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.dispatch.epoch import Epoch
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.services import audit, outbox, runs, unknown
from onceonly_jobs.store.database import Database

logger = logging.getLogger(__name__)

LONGEST_TICK_S = 5.0
MAX_PAUSE_S = 10.0
QUEUES_FOR_S = 5.0
"""How long the list of known queues is used before it is read again."""
FULL_PAUSE_S = 0.1
"""How soon to look again when a queue was full: it may be empty before long."""
STRANGERS_S = 1.0
"""While all known queues are full, how often to look for due runs of others."""
TIDY_S = 60.0
"""How often answers that nobody takes are given an end."""


class Relay:
    """The outbox's other end: publishes due runs after their commit, reaps expired claims."""

    def __init__(
        self, settings: Settings, database: Database, publisher: Publisher, hints: HintSender
    ) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._hints = hints
        self._epoch = Epoch(settings)
        self._queues = {settings.default_queue}
        self._queues_until = 0.0
        self._full: list[str] = []
        self._strangers_at = 0.0
        self._failures = 0
        self._seal_at = 0.0
        self._tidy_at = 0.0

    def tick(self) -> float:
        """Do what is due now. Returns in how many seconds to come again; never raises."""
        stop_at = time.monotonic() + LONGEST_TICK_S
        # Each on its own: a broker that is down is no reason to leave dead workers' runs where they are.
        answered = [
            self._tried("reaping", lambda: self._reap(stop_at)),
            self._tried("checking the broker", self._check_epoch),
            self._tried("publishing", lambda: self._publish(stop_at)),
        ]
        # Not among these: a trail that can't be sealed now must not slow down the runs.
        self._tried("sealing the audit trail", lambda: self._seal(stop_at))
        if answered[-1] is not None:  # a question that the broker does not take would be lost
            self._tried("confirming", self._confirm)
            self._tried("tidying the broker", self._tidy)
        metrics.count(metrics.RELAY_TICKS, "failed" if None in answered else "ok")
        if None in answered:
            self._failures += 1
            return min(MAX_PAUSE_S, self._settings.relay_interval_s * 2.0 ** min(self._failures, 10))
        if self._failures:
            logger.info("database and broker answer again")
        self._failures = 0
        pause_s = self._settings.relay_interval_s
        return 0.0 if any(answered) else min(pause_s, FULL_PAUSE_S) if self._full else pause_s

    def _tried(self, doing: str, step: Callable[[], bool]) -> bool | None:
        """Whether the step has more to do; None when it failed."""
        try:
            return step()
        except Exception as error:
            metrics.count(metrics.RELAY_FAILURES, doing)
            level = logging.WARNING if self._failures == 0 else logging.DEBUG
            logger.log(level, "%s failed, trying again: %s", doing, brief(error))
            return None

    def _reap(self, stop_at: float) -> bool:
        """Take back the runs of dead workers; tell of those that have no attempts left."""
        batch = self._settings.relay_batch
        while True:
            reaped = self._database.run(outbox.reap, batch, self._settings.retention_s)
            for run in reaped:
                metrics.count(metrics.CLAIMS_EXPIRED, "ended" if run.finished else "queued")
                logger.warning(
                    "run %s: its worker is gone, %s", run.key, "failed" if run.finished else "queued again"
                )
                if run.finished:
                    self._hints.finished(run.tenant_id, run.key)
            if len(reaped) < batch:
                return False
            if time.monotonic() > stop_at:
                return True

    def _seal(self, stop_at: float) -> bool:
        """Seal what the audit trail has new, at most every `audit_seal_s`."""
        if time.monotonic() < self._seal_at:
            return False
        self._seal_at = time.monotonic() + self._settings.audit_seal_s
        while self._database.run(audit.seal) == audit.SEAL_BATCH:
            if time.monotonic() > stop_at:
                self._seal_at = 0.0
                return True
        return False

    def _check_epoch(self) -> bool:
        """A wiped broker has forgotten every message: publish all that is due, at once."""
        if self._epoch.ended():
            count = self._database.run(outbox.republish_all)
            self._epoch.begin()
            if count:
                logger.warning("the broker is empty: %d due runs are published again", count)
        return False

    def _publish(self, stop_at: float) -> bool:
        grace_s = self._settings.publish_grace_s
        while True:
            batch = self._room()  # first: if the broker is down, nothing is taken
            due = self._database.run(outbox.take_due, batch, grace_s, self._full) if batch else []
            self._queues.update(run.queue for run in due)
            self._publisher.publish(due)
            if len(due) < batch or not batch:
                return False
            if time.monotonic() > stop_at:
                return True

    def _confirm(self) -> bool:
        """Let workers ask the tools whether calls of unknown outcome have happened."""
        batch = self._settings.relay_batch
        while self._publisher.publish(self._database.run(unknown.take_confirmable, batch)) == batch:
            pass
        return False

    def _tidy(self) -> bool:
        """See to it that monitors that were killed leave nothing in the broker for ever."""
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_S
            self._epoch.tidy()
        return False

    def _room(self) -> int:
        """How many runs to publish at once, and which queues hold enough messages already.

        What is theirs waits in the database, where workers find it too.
        """
        limit = self._settings.broker_backlog
        if time.monotonic() > self._queues_until:
            self._queues.update(job.queue for job in self._database.run(runs.registered_jobs))
            self._queues_until = time.monotonic() + QUEUES_FOR_S
        backlog = {name: self._publisher.backlog(name) for name in sorted(self._queues)}
        for name, messages in backlog.items():
            metrics.put(metrics.QUEUE_MESSAGES, name, value=messages)
        self._full = [name for name, messages in backlog.items() if messages >= limit]
        room = sum(max(0, limit - messages) for messages in backlog.values())
        if room == 0 and time.monotonic() >= self._strangers_at:
            self._strangers_at, room = time.monotonic() + STRANGERS_S, limit
        return min(self._settings.relay_batch, room)
