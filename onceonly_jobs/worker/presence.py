"""A thread of a worker's main process: it reports how the worker does, and ends it when it is stuck."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Collection
from typing import Any

from billiard import active_children
from celery.worker import state as celery_state

from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.broker import BrokerError, Publisher
from onceonly_jobs.domain.watchdog import Situation, suspicion
from onceonly_jobs.services import workers
from onceonly_jobs.services.workers import REPORT_S, Unserved, WorkerReport, WorkerState
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.files import ALIVE_FILE, remove, touch
from onceonly_jobs.worker.runtime import Runtime, silence_s

logger = logging.getLogger(__name__)

STUCK_STATUS = 75
"""Of a process that ended itself: to be started again."""
END_GRACE_S = 5.0
"""How long a stuck main loop may take to end in order."""


class Presence:
    """Of a worker that consumes. Its database connection is its own: the runtime's are the handlers'."""

    def __init__(self, runtime: Runtime, consumer: Any, jobs: Collection[str]) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._consumer = consumer
        self._jobs = jobs
        self._database = Database(
            self._settings.require_database_url(), pool_size=1, silence_s=silence_s(self._settings)
        )
        self._over = threading.Event()
        self._busy_at = time.monotonic()
        self._message_at: float | None = None
        self._suspected = False
        self._silent = False
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def note_message(self) -> None:
        """The worker has received a message."""
        self._message_at = self._busy_at = time.monotonic()

    def close(self) -> None:
        """The worker ends in order."""
        stuck = self._over.is_set()
        self._over.set()
        if not stuck:  # what is known of a stuck worker is kept for whoever looks into it
            with contextlib.suppress(Exception):
                self._database.run(workers.forget, self._runtime.worker_id)
        self._database.close()

    def _run(self) -> None:
        patience_s = self._settings.watchdog_s
        pause_s = min(REPORT_S, patience_s / 4) if patience_s else REPORT_S
        while not self._over.is_set():
            try:
                self._look()
            except Exception as error:
                logger.warning("this worker was not looked after, trying again: %s", brief(error))
            self._over.wait(pause_s)

    def _look(self) -> None:
        """End the worker when it is stuck; else say how it does."""
        watched = self._settings.watchdog_s and not self._runtime.shared.draining
        why = self._why_stuck() if watched else None
        if why is not None:
            self._end(why)
            return
        self._report()
        touch(ALIVE_FILE)

    def _report(self, stuck: bool = False) -> None:
        """To the database, at best: a worker that nobody can watch still works."""
        try:
            self._database.run(workers.report, self._as_it_is(stuck))
        except Exception as error:
            logger.log(
                logging.DEBUG if self._silent else logging.WARNING, "worker not reported: %s", brief(error)
            )
            self._silent = True
        else:
            self._silent = False

    def _as_it_is(self, stuck: bool) -> WorkerReport:
        name = str(self._consumer.hostname)
        state = WorkerState.DRAINING if self._runtime.shared.draining else WorkerState.SERVING
        return WorkerReport(
            id=self._runtime.worker_id,
            name=name,
            hostname=name.partition("@")[2],
            pid=os.getpid(),
            queues=self._queues(),
            concurrency=int(self._consumer.pool.limit or 1),
            state=WorkerState.STUCK if stuck else state,
            active=len(celery_state.reserved_requests),
            message_age_s=None if self._message_at is None else time.monotonic() - self._message_at,
            last_claim_at=self._runtime.shared.last_claim_at,
        )

    def _queues(self) -> list[str]:
        """Those that it consumes at this moment: an operator may have taken one away."""
        return sorted(self._consumer.app.amqp.queues.consume_from)

    def _why_stuck(self) -> str | None:
        """What two looks in a row have found wrong."""
        why = self._suspicion()
        suspected, self._suspected = self._suspected, why is not None
        return why if suspected else None

    def _suspicion(self) -> str | None:
        now = time.monotonic()
        if celery_state.reserved_requests:
            self._busy_at = now
        idle_s = now - self._busy_at
        if idle_s < self._settings.watchdog_s:
            return None
        unserved = self._unserved()
        if unserved is None or not unserved.runs:
            return None
        situation = Situation(
            idle_s=idle_s,
            unserved=unserved.runs,
            published_ago_s=unserved.published_ago_s,
            queued_messages=self._queued_messages(),
        )
        return suspicion(situation, self._settings.watchdog_s)

    def _unserved(self) -> Unserved | None:
        try:
            return self._database.run(
                workers.unserved,
                self._queues(),
                self._jobs,
                self._settings.watchdog_s,
                self._settings.publish_grace_s,
            )
        except Exception as error:
            logger.debug("waiting runs not counted: %s", brief(error))
            return None

    def _queued_messages(self) -> int:
        """By a connection that is made for it: the worker's own may be what is broken."""
        publisher = Publisher(self._settings)
        try:
            return sum(publisher.backlog(name) for name in self._queues())
        except BrokerError:
            return 0
        finally:
            publisher.close()

    def _end(self, why: str) -> None:
        """Nothing is given up: the worker has nothing in hand. Whoever supervises it starts it again."""
        logger.error("this worker is stuck, and ends itself: %s", why)
        self._over.set()
        remove(ALIVE_FILE)
        self._report(stuck=True)
        self._runtime.shared.drain(0)
        celery_state.should_stop = STUCK_STATUS  # where its main loop still turns
        time.sleep(END_GRACE_S)
        logger.error("its main loop does not end either: killed")
        for child in active_children():
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
        os._exit(STUCK_STATUS)
