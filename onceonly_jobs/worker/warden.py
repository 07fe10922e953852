"""Looks after the runs that a process has claimed together, in a thread of its own.

Most are done before it looks for the first time. A run that is not gets a keeper, as any other, and what waits behind
it is given back.
"""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from onceonly_jobs import metrics
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import claims_many
from onceonly_jobs.worker.held import AtWork, Held
from onceonly_jobs.worker.keeper import STARVED_LEASES, STDERR
from onceonly_jobs.worker.lifecycle import answered
from onceonly_jobs.worker.runtime import Runtime

logger = logging.getLogger(__name__)

SLOW_S = 0.1
"""A handler that takes longer is slow."""
WAIT_S = 0.25
"""So long may claimed runs wait for their turn."""
LOOK_S = 0.05
LAST_S = 2.0
"""How long a process that is told to end waits for what it has to tell the database."""


class Warden:
    """For the length of a `with` block. It begins no run and stores no result."""

    def __init__(
        self, runtime: Runtime, held: Held, on_slow: Callable[[AtWork], None], stalled_s: Callable[[], float]
    ) -> None:
        """on_slow: told of a run that is. stalled_s: for how long nothing has moved where results are stored."""
        settings = runtime.settings
        self._starved_s = STARVED_LEASES * settings.worker_lease_s + settings.time_limit_grace_s
        self._stalled_s = stalled_s
        self._runtime = runtime
        self._on_slow = on_slow
        self._held = held
        self._over = threading.Event()
        self._watching = threading.Lock()
        self._kept_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="warden", daemon=True)

    def __enter__(self) -> Warden:
        self.watch()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        with self._watching:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()
        ending = error is not None and not isinstance(error, Exception)
        self._thread.join(LAST_S if ending else self._runtime.settings.worker_lease_s)

    def watch(self) -> None:
        """End this process should a handler hold the interpreter, so that not even this thread gets to run."""
        with self._watching:
            if not self._over.is_set():
                faulthandler.dump_traceback_later(self._starved_s, exit=True, file=STDERR)

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self._look()
            except Exception:
                logger.exception("claimed runs were not looked after")

    def _look(self) -> None:
        heartbeat_s = self._runtime.settings.worker_heartbeat_s
        work = self._held.slow(min(SLOW_S, heartbeat_s))
        if work is not None:
            work.keeper.start()  # which watches over the interpreter by itself
            self._on_slow(work)
        elif not self._held.kept and self._stalled_s() < self._starved_s:
            self.watch()
        if (
            self._held.kept
            or self._held.waiting_for() > min(WAIT_S, heartbeat_s)
            or self._runtime.shared.out_of_time
        ):
            self.give_back(self._held.take_waiting())
        if time.monotonic() - self._kept_at >= heartbeat_s:
            self._keep(self._held.unattended())

    def give_back(self, waiting: list[Claim], patience_s: float | None = None) -> None:
        """Let others begin them. Should the database be away for longer, by default a lease, the claims expire."""
        if not waiting:
            return
        try:
            database, lease_s = self._runtime.database, self._runtime.settings.worker_lease_s
            answered(lambda: database.run(claims_many.give_back, waiting), patience_s or lease_s)
        except Exception as error:
            logger.warning("%d runs not given back, their claims will expire: %s", len(waiting), brief(error))
        else:
            metrics.count(metrics.DIRECT_CLAIMS, "given_back", by=len(waiting))

    def _keep(self, claims: list[Claim]) -> None:
        asked_at = time.monotonic()
        if claims:
            lease_s = self._runtime.settings.worker_lease_s
            try:
                kept = self._runtime.database.run(claims_many.keep, claims, lease_s)
            except Exception as error:
                metrics.count(metrics.HEARTBEATS, "unanswered")
                logger.warning("%d runs: heartbeat failed: %s", len(claims), brief(error))
                return
            metrics.count(metrics.HEARTBEATS, "kept", by=len(kept))
            self._held.drop({claim.id for claim in claims} - kept)
        self._kept_at = asked_at
