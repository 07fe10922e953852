"""Publishing that its caller never waits for."""

from __future__ import annotations

import logging
import os
import queue
import threading
from contextlib import suppress

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.direct import DirectPublisher
from onceonly_jobs.store.outbox import Due

logger = logging.getLogger(__name__)

WAITING = 2000
"""Runs that may wait for their turn. Further ones are left to the relay."""
BATCH = 100
CLOSE_S = 2.0


class BackgroundPublisher:
    """Publishes in a thread of its own, which starts with the first run in each process."""

    def __init__(self, settings: Settings) -> None:
        self._direct = DirectPublisher(settings)
        self._new(os.getpid())

    def _new(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._due: queue.Queue[Due | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None

    def full(self, name: str) -> bool:
        """Whether a queue is known to have enough messages: what is due need not wait for its publication."""
        return self._direct.full(name)

    def submit(self, due: Due) -> None:
        """Publish a committed run that is due now, if that is easily done. Never blocks, never raises."""
        if self._direct.resting:
            return
        if self._pid != os.getpid():
            self._new(os.getpid())
        try:
            self._due.put_nowait(due)
        except queue.Full:
            self._direct.leave(1, "they come faster than the broker takes them")
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Publish what waits, for a short while, and stop."""
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            with suppress(queue.Full):  # a daemon thread: in the worst case it ends with the process
                self._due.put(None, timeout=CLOSE_S)
            thread.join(CLOSE_S)

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._direct.offer(*batch)
            except Exception:
                logger.exception("%d runs not published", len(batch))
        self._direct.close()

    def _next_batch(self) -> list[Due]:
        """What waits, up to a batch; empty when this is to end."""
        batch = []
        due = self._due.get()
        while due is not None:
            batch.append(due)
            if len(batch) == BATCH or self._due.empty():
                return batch
            due = self._due.get()
        if batch:
            self._due.put(None)  # the end, for the next call
        return batch
