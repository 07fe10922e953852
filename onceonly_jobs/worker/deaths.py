"""Processes of a worker that die under a run: told at once, instead of when the claim has expired."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any

from billiard.common import human_status
from billiard.exceptions import Terminated, WorkerLostError
from celery import bootsteps
from celery.worker.request import Request

from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.services import claims_many, outbox
from onceonly_jobs.services.outbox import Death
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.runtime import Runtime

logger = logging.getLogger(__name__)

LOOK_S = 0.25
CONNECT_S = 2
SILENT_S = 10.0
"""After a report that the database did not take. It would hold up the worker, and the claims expire by themselves."""

_SIGNAL = re.compile(r"signal (\d+)")


def crashed(runtime: Runtime, run: int, why: str) -> None:
    """Take this process's run back as a crash: its handler is about to end it."""
    death = Death(worker_id=runtime.worker_id, pid=os.getpid(), why=why)
    _take_back(runtime, runtime.database, death, run, others=False)


def reporting_requests(runtime: Runtime) -> type[Request]:
    """Celery's requests, which report when the process of theirs has died."""
    reporter = Reporter(runtime)

    class ReportingRequest(Request):  # type: ignore[misc]
        def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
            error = exc_info.exception
            lost = getattr(error, "exc", error)
            how = word_of_death(lost)
            if how is not None and self.worker_pid:
                reporter.report(self.worker_pid, self.kwargs.get("run"), how)
            return super().on_failure(exc_info, *args, **kwargs)

    return ReportingRequest


class QuickLook(bootsteps.StartStopStep):  # type: ignore[misc]
    """Looks for dead children often.

    The pool is woken by a closing pipe, which the kernel closes before there is a dead process to be found; then it
    looks again after 5 seconds.
    """

    requires = ("celery.worker.components:Pool",)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        hub.call_repeatedly(LOOK_S, worker.pool.maintain_pool)


class Reporter:
    """What the main process of a worker tells of its children. It never raises.

    Within the thread that forks them, so that no lock is held while it does.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._silent_until = 0.0

    def report(self, pid: int, run: int | None, how: str) -> None:
        """A child has died that ran this run, and maybe a call within it."""
        if run is None or time.monotonic() < self._silent_until:
            return
        runtime = self._runtime
        url = runtime.settings.require_database_url()
        # Of its own, and closed again: a connection of this process is no child's to inherit.
        database = Database(url, pool_size=1, connect_timeout_s=CONNECT_S)
        try:
            self._spare(database, pid, run)
            death = Death(worker_id=runtime.worker_id, pid=pid, why=cause(how), signal=signal_in(how))
            _take_back(runtime, database, death, run, others=True)
        except Exception as error:
            self._silent_until = time.monotonic() + SILENT_S
            logger.warning("run %s: death not reported, its claim will expire: %s", run, brief(error))
        finally:
            database.close()

    def _spare(self, database: Database, pid: int, run: int) -> None:
        """What it held beside the run that it was at work on is no crash, and most of it was not even begun."""
        progress = self._runtime.shared.progress(pid)
        if progress is not None:
            spared = database.run(claims_many.spare, self._runtime.worker_id, pid, run, progress)
            logger.info("%d runs of a dead process are queued again", len(spared))


def word_of_death(error: BaseException) -> str | None:
    """What Celery says of how a process died; None where it has not: a cancelled run is `Terminated` too, in words."""
    if isinstance(error, WorkerLostError):
        return str(error)
    signal = error.args[0] if isinstance(error, Terminated) and error.args else None
    return str(human_status(-signal)) if isinstance(signal, int) else None


def cause(how: str) -> str:
    """What Celery says of a death, without its own numbers: `the worker's process died: signal 9 (SIGKILL)`."""
    known = re.search(r"prematurely: (.+?)\.?(?: Job: .*)?$", how)
    return f"the worker's process died: {known[1] if known else how}"


def signal_in(how: str) -> int | None:
    """The signal by which it died; None where it ended itself, or nobody knows."""
    known = _SIGNAL.search(how)
    return int(known[1]) if known else None


def _take_back(runtime: Runtime, database: Database, death: Death, run: int, *, others: bool) -> None:
    for each in database.run(outbox.died, death, run, runtime.settings.retention_s, others=others):
        logger.warning("run %s: %s, %s", each.key, death.why, "failed" if each.finished else "queued again")
        if each.finished:
            runtime.hints.finished(each.tenant_id, each.key)
