"""Publishing right after the commit, where that is easily done. Whatever is not, the relay does a little later."""

from __future__ import annotations

import logging
import time

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import BrokerError, Publisher
from onceonly_jobs.store.outbox import Due

logger = logging.getLogger(__name__)

REST_S = 1.0
"""How long a broker that failed is left alone."""
BACKLOG_FOR_S = 0.1
"""How long an answer about a queue's length is believed, but for what was published since."""
FULL_FOR_S = 1.0
"""How much longer a queue is held to be full, while nobody looks."""
LOG_EVERY_S = 10.0


class DirectPublisher:
    """A publisher that never raises and gives up early."""

    def __init__(self, settings: Settings) -> None:
        self._publisher = Publisher(settings)
        self._limit = settings.broker_backlog
        self._known: dict[str, tuple[int, float]] = {}
        self._rest_until = 0.0
        self._logged_at = float("-inf")
        self._left = 0

    @property
    def resting(self) -> bool:
        """The broker has just failed, and is left alone for a moment."""
        return time.monotonic() < self._rest_until

    def offer(self, *due: Due) -> bool:
        """Publish committed runs that are due now. False when some are left to the relay."""
        if self.resting:
            return self.leave(len(due), "the broker has just failed")
        try:
            room = [run for run in due if self._has_room(run.queue)]
            self._publisher.publish(room)
        except BrokerError as error:
            self._rest_until = time.monotonic() + REST_S
            return self.leave(len(due), str(error))
        return len(room) == len(due)

    def full(self, name: str) -> bool:
        """Whether the queue had enough messages when it was last looked at. Asks nobody, so it may be wrong.

        Then a run need not be kept from relays and workers in favour of this: `publish_grace_s=0`. Offered all the
        same, it is published if there is room by then.
        """
        messages, until = self._known.get(name, (0, 0.0))
        return messages >= self._limit and time.monotonic() < until + FULL_FOR_S

    def _has_room(self, name: str) -> bool:
        """For one more message, which is counted."""
        messages, until = self._known.get(name, (0, 0.0))
        if time.monotonic() >= until:
            messages, until = self._publisher.backlog(name), time.monotonic() + BACKLOG_FOR_S
        has_room = messages < self._limit
        self._known[name] = (messages + int(has_room), until)
        return has_room

    def leave(self, count: int, why: str) -> bool:
        """Leave runs to the relay, and say so now and then."""
        self._left += count
        metrics.count(metrics.PUBLICATIONS, "left", by=count)
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:
            logger.warning("%d runs left to the relay to publish: %s", self._left, why)
            self._logged_at, self._left = time.monotonic(), 0
        return False

    def close(self) -> None:
        self._publisher.close()
