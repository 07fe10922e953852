"""Deletes what is old, in a thread of its own: slowly, so that nobody notices. Any number may run at once."""

from __future__ import annotations

import logging
import threading

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.services import retention
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.retention import Kind
from onceonly_jobs.worker.runtime import scheduler_silence_s

logger = logging.getLogger(__name__)

EVERY_S = 60.0
PAUSE_S = 0.2
"""Between two full batches, at most 5000 rows a second of each kind: more than a busy system adds."""


class Janitor:
    """Prunes each kind of old rows in turn."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(
            settings.require_database_url(), pool_size=1, silence_s=scheduler_silence_s(settings)
        )
        self._kept = retention.kept(settings)
        self._stop = threading.Event()

    def start(self) -> None:
        """Prune in a thread of its own, for as long as the process lives."""
        threading.Thread(target=self._run_forever, name="janitor", daemon=True).start()

    def _run_forever(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.tick()

    def tick(self) -> int:
        """Delete what is old now, and say how many rows. Never raises: a kind that can't be pruned waits a round."""
        return sum(self._prune(kind) for kind in Kind)

    def close(self) -> None:
        self._stop.set()
        self._database.close()

    def _prune(self, kind: Kind) -> int:
        total = 0
        try:
            while deleted := self._database.run(retention.prune, kind, self._kept, retention.BATCH):
                total += deleted
                metrics.count(metrics.PRUNED_ROWS, kind.value, by=deleted)
                if deleted < retention.BATCH or self._stop.wait(PAUSE_S):
                    break
        except Exception as error:
            logger.warning("old %s are not deleted now, trying again later: %s", kind, brief(error))
        if total:
            logger.info("%d old %s deleted", total, kind)
        return total
