"""The heartbeat of a running handler, in a thread of its own."""

from __future__ import annotations

import contextvars
import faulthandler
import logging
import os
import signal
import threading
import time
from types import TracebackType

from onceonly_jobs import metrics
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import claims
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.claims import Beat
from onceonly_jobs.worker.interrupt import Interrupt, Reason
from onceonly_jobs.worker.runtime import Runtime

logger = logging.getLogger(__name__)

TIMEOUT = "timeout"
TIMEOUT_MESSAGE = "the run's time limit passed"
RETRY_S = 1.0
STARVED_LEASES = 4
"""After so many leases without a chance to run, the process is given up."""
LAST_WORDS_S = 5.0
LOOK_S = 0.25
"""How often to see whether the worker is to end: its main process can't wake this thread, only leave word."""
STDERR = 2


class Keeper:
    """Keeps a claim alive while its handler runs, and stops the handler when the claim can't be kept."""

    def __init__(
        self, runtime: Runtime, claim: Claim, interrupt: Interrupt, *, since: float | None = None
    ) -> None:
        """since: when the claim was asked for, by time.monotonic(); by default it has just been made."""
        self._runtime = runtime
        self._settings = runtime.settings
        self._claim = claim
        self._interrupt = interrupt
        self._wake = threading.Event()
        self._over = threading.Event()
        self._watching = threading.Lock()
        now = time.monotonic() if since is None else since
        self._lease_until = now + self._settings.worker_lease_s
        self._deadline = now + (claim.deadline_at - claim.claimed_at).total_seconds()
        self._wake_at = min(now + self._settings.worker_heartbeat_s, self._deadline)
        # In a copy of the context, so that its log lines have the run's names too.
        self._context = contextvars.copy_context()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Keeper:
        self.start()
        return self

    def start(self) -> None:
        """Begin to keep it, unless that is over. Whoever starts it later than at once keeps the claim until then."""
        with self._watching:
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(
                    target=self._context.run, args=(self._keep,), name=f"keeper-{self._claim.id}", daemon=True
                )
                # Before the handler is called: on a busy machine it may hold the interpreter before that thread runs.
                self._arm()
                self._thread.start()

    def end(self) -> None:
        """The handler has returned, and what it did is recorded."""
        with self._watching:
            if self._thread is None:
                self._over.set()
        if not self._over.is_set():
            self._unwatch(over=True)
            self._wake.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.end()

    def _watch(self) -> None:
        """End this process if even this thread does not get to run: a handler may hold the interpreter."""
        with self._watching:
            self._arm()

    def _arm(self) -> None:
        if self._runtime.expendable and not self._over.is_set():
            settings = self._settings
            after_s = STARVED_LEASES * settings.worker_lease_s + settings.time_limit_grace_s
            faulthandler.dump_traceback_later(after_s, exit=True, file=STDERR)

    def _unwatch(self, over: bool = False) -> None:
        with self._watching:
            # After the end the watch is the next run's.
            if self._runtime.expendable and not self._over.is_set():
                faulthandler.cancel_dump_traceback_later()
            if over:
                self._over.set()

    def look_now(self) -> None:
        """Ask at once whether the claim is still good."""
        self._wake.set()

    def time_left_s(self) -> float:
        """Seconds until the time limit, as far as the last heartbeat knew."""
        return max(0.0, self._deadline - time.monotonic())

    def _keep(self) -> None:
        while not self._over.is_set():
            self._watch()
            self._sleep()
            if self._over.is_set():
                return
            reason = Reason.STOPPING if self._runtime.shared.out_of_time else self._trouble()
            if reason is not None:
                self._watch()
                self._stop_handler(reason)
                self._unwatch()
                return

    def _sleep(self) -> None:
        """Until the next heartbeat is due, somebody asks for one, or the worker is to end."""
        while not self._runtime.shared.out_of_time:
            left_s = self._wake_at - time.monotonic()
            if left_s <= 0 or self._wake.wait(min(left_s, LOOK_S)):
                break
        self._wake.clear()

    def _trouble(self) -> Reason | None:
        """Why the handler has to stop, or None: the claim is good for another lease."""
        asked_at = time.monotonic()
        try:
            beat = self._runtime.database.run(
                claims.heartbeat, self._claim, self._settings.worker_lease_s, self._settings.retention_s
            )
        except Exception as error:
            metrics.count(metrics.HEARTBEATS, "unanswered")
            return self._unanswered(error)
        metrics.count(metrics.HEARTBEATS, "kept" if isinstance(beat, Beat) else "stopped")
        if not isinstance(beat, Beat):
            return Reason.CANCELLED if beat is Ending.CANCELLED else Reason.LOST
        if beat.overdue:
            return Reason.OVERDUE
        self._lease_until = asked_at + self._settings.worker_lease_s
        self._deadline = asked_at + beat.time_left_s
        # At the time limit it is asked again, not believed: the database's clock counts, and the requester may
        # have moved the limit.
        self._wake_at = min(asked_at + self._settings.worker_heartbeat_s, self._deadline)
        return None

    def _unanswered(self, error: Exception) -> Reason | None:
        """The database is away. The claim stands until the lease would have run out without a heartbeat."""
        now = time.monotonic()
        logger.warning("run %s: heartbeat failed: %s", self._claim.id, brief(error))
        if now >= self._lease_until:
            return Reason.LOST
        self._wake_at = min(now + RETRY_S, self._lease_until)
        return None

    def _stop_handler(self, reason: Reason) -> None:
        self._interrupt.announced = reason
        if reason is not Reason.OVERDUE and self._over.wait(self._notice_s(reason)):
            return  # it has noticed by itself
        if not self._interrupt.fire(reason):
            return
        logger.warning("run %s %s: interrupted, %s", self._claim.id, self._claim.key, reason.name.lower())
        if reason is Reason.OVERDUE:
            self._record_timeout()
        if not self._over.wait(self._settings.time_limit_grace_s):
            self._interrupt.unless_over(self._give_up)

    def _notice_s(self, reason: Reason) -> float:
        """How long a handler may take to see by itself that it has to stop."""
        return LOOK_S if reason is Reason.STOPPING else self._settings.worker_heartbeat_s

    def _record_timeout(self) -> None:
        """At once: the handler may take its time to stop, or never do."""
        claim, retention_s = self._claim, self._settings.retention_s
        if not claim.repeatable:
            return  # a call that may have happened: its end says what is known of it
        try:
            failure = claims.Failure(
                error_code=TIMEOUT,
                message=TIMEOUT_MESSAGE,
                kind="timeout",
                dead_lettered=not claim.tool_call,
                repeatable=claim.tool_call,
            )
            self._runtime.database.run(claims.end_as_failed, claim, failure, retention_s)
        except Exception as error:
            logger.warning("run %s: timeout not recorded yet: %s", claim.id, brief(error))
        else:
            self._runtime.hints.finished(claim.tenant_id, claim.key)

    def _give_up(self) -> None:
        """The handler can't be interrupted. A process of its own is replaced, any other has to live with it."""
        claim = self._claim
        if not self._runtime.expendable:
            logger.error("run %s (%s): handler %s can't be stopped", claim.id, claim.key, claim.job)
            return
        # Should the handler hang with a lock of the logging in its hands, the process ends all the same.
        faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True, file=STDERR)
        logger.error("run %s (%s): handler %s won't stop, its process ends", claim.id, claim.key, claim.job)
        os.kill(os.getpid(), signal.SIGKILL)
