"""The webhooks' outbox: what is due is posted, signed like a tool call, until it is taken or given up."""

from __future__ import annotations

import logging
import threading
import time
from queue import Empty, SimpleQueue

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.fields import utc_iso
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.effects import succeeded
from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.errors import SecretUnreadable
from onceonly_jobs.services import webhooks
from onceonly_jobs.services.tools import vault_of
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.webhooks import Delivery
from onceonly_jobs.worker.addresses import Forbidden
from onceonly_jobs.worker.handlers import allowed_addresses
from onceonly_jobs.worker.outcomes import printable
from onceonly_jobs.worker.runtime import scheduler_silence_s
from onceonly_jobs.worker.tool_call import signed_headers, url_of
from onceonly_jobs.worker.tool_wire import Lost, NotSent, post

logger = logging.getLogger(__name__)

BATCH = 32
EACH = 4
"""At most so many of one namespace at a time."""
AT_ONCE = 8
TIMEOUT_S = 10.0
LEASE_S = 120.0
"""Longer than a batch of slow receivers takes: then another courier may try."""
MAX_ANSWER_BYTES = 1024
IDLE_S = 1.0
MAX_PAUSE_S = 30.0
FORGET_EVERY_S = 600.0
FORGET_BATCH = 1000


class Courier:
    """Delivers notifications. Any number may run at once; each delivery is taken by one."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(
            settings.require_database_url(), pool_size=AT_ONCE, silence_s=scheduler_silence_s(settings)
        )
        self._vault = vault_of(settings)
        self._allowed = allowed_addresses(settings)
        self._failures = 0
        self._forget_at = 0.0

    def start(self) -> None:
        """Deliver in a thread of its own, for as long as the process lives."""
        threading.Thread(target=self._run_forever, name="courier", daemon=True).start()

    def _run_forever(self) -> None:
        while True:
            time.sleep(self.tick())

    def tick(self) -> float:
        """Deliver what is due. Returns in how many seconds to come again; never raises."""
        try:
            taken = self._database.run(webhooks.take, BATCH, EACH, LEASE_S)
            self._deliver_all(taken)
            self._forget()
        except Exception as error:
            logger.log(
                logging.DEBUG if self._failures else logging.WARNING,
                "notifications are not delivered now, trying again: %s",
                brief(error),
            )
            self._failures += 1
            return min(MAX_PAUSE_S, IDLE_S * 2.0 ** min(self._failures, 10))
        self._failures = 0
        return 0.0 if taken else IDLE_S

    def close(self) -> None:
        self._database.close()

    def _deliver_all(self, taken: list[Delivery]) -> None:
        """Several at once. Raises one of the errors by which deliveries were not recorded."""
        # A process that ends waits for a pool's threads, and so for receivers that don't answer; not for these.
        left: SimpleQueue[Delivery] = SimpleQueue()
        for delivery in taken:
            left.put(delivery)
        errors: list[Exception] = []
        threads = [
            threading.Thread(target=self._deliver_each, args=(left, errors), daemon=True)
            for _ in taken[:AT_ONCE]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _deliver_each(self, left: SimpleQueue[Delivery], errors: list[Exception]) -> None:
        """What is left, until nothing is or something fails."""
        try:
            while True:
                self._deliver(left.get_nowait())
        except Empty:
            return
        except Exception as error:
            errors.append(error)

    def _deliver(self, delivery: Delivery) -> None:
        """Post it and record how that went. Unrecorded, it is due again when its lease is over."""
        status, error = self._posted(delivery)
        if error is not None:
            logger.warning("notification %s, attempt %s: %s", delivery.message_id, delivery.attempt, error)
        self._database.run(webhooks.record, delivery, status, error)

    def _posted(self, delivery: Delivery) -> tuple[int | None, str | None]:
        """The answer's status, and what is wrong; None where the receiver has taken it."""
        body = compact_json(
            {
                "id": delivery.message_id,
                "type": delivery.type,
                "timestamp": utc_iso(delivery.at),
                "data": delivery.data,
            }
        )
        try:
            answer = post(
                url_of(delivery.url),
                signed_headers(webhooks.secret_of(delivery, self._vault), body, delivery.message_id),
                body,
                allowed=self._allowed,
                timeout_s=TIMEOUT_S,
                limit=MAX_ANSWER_BYTES,
            )
        except Forbidden as error:
            return None, f"not allowed: {printable(str(error))}"
        except NotSent as error:
            return None, f"not reached: {printable(str(error))}"
        except Lost as error:
            return None, f"no answer: {printable(str(error))}"
        except SecretUnreadable as error:
            return None, f"not signed: {error}"
        return answer.status, None if succeeded(answer.status) else f"answered {answer.status}"

    def _forget(self) -> None:
        if time.monotonic() >= self._forget_at:
            full = self._database.run(webhooks.forget, FORGET_BATCH) == FORGET_BATCH
            self._forget_at = time.monotonic() + (0.0 if full else FORGET_EVERY_S)
