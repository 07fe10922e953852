"""The Celery producer: one message per run that is due. It carries names, never payloads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from celery import Celery
from celery.events import Event
from celery.utils.time import utcoffset
from kombu.entity import Queue
from kombu.messaging import Producer

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.messages import RunMessage
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.celeryconf import PRODUCER_TIMEOUT_S, is_redis, producer_conf, queue
from onceonly_jobs.store.outbox import Due

T = TypeVar("T")

STALE_S = 1.0
"""A connection that fails sooner than this was dead already; a new one deserves a try."""


class BrokerError(Exception):
    """The broker did not take a message, or could not be asked."""


class Publisher:
    """Publishes runs by job name, from any thread. Connects per process, after a fork, on first use."""

    def __init__(self, settings: Settings) -> None:
        self._conf = producer_conf(settings)
        redis = is_redis(settings.require_broker_url())
        self._confirm = {} if redis else {"confirm_timeout": PRODUCER_TIMEOUT_S}
        self._new(os.getpid())

    def _new(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._app = Celery("onceonly", set_as_current=False)
        self._app.conf.update(self._conf)
        self._producer: Producer | None = None
        self._queues: dict[str, Queue] = {}

    def publish(self, due: Iterable[Due]) -> int:
        """How many runs were published: all of them. Raises BrokerError; then any of them may have been."""
        batch = list(due)
        if batch:
            try:
                with self._alone():
                    self._ask(lambda producer: self._send_all(producer, batch))
            except BrokerError:
                metrics.count(metrics.PUBLICATIONS, "failed", by=len(batch))
                raise
            metrics.count(metrics.PUBLICATIONS, "published", by=len(batch))
        return len(batch)

    def backlog(self, name: str) -> int:
        """Messages waiting in a queue; 0 where there is no such queue. Raises BrokerError."""
        with self._alone():
            return self._ask(lambda producer: _queue_length(producer, name))

    def close(self) -> None:
        """Drop the connection; the next operation makes a new one."""
        if self._pid == os.getpid():
            with self._alone():
                self._reset()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time: kombu's connections are not to be shared."""
        if self._pid != os.getpid():
            self._new(os.getpid())
        if not self._lock.acquire(timeout=PRODUCER_TIMEOUT_S):
            raise BrokerError("busy: the broker is slow to take other messages")
        try:
            yield
        finally:
            self._lock.release()

    def _ask(self, question: Callable[[Producer], T]) -> T:
        """The broker's answer; asked again on a new connection where the old one proves dead at once."""
        was_connected, started = self._producer is not None, time.monotonic()
        try:
            return question(self._connected())
        except Exception as error:
            self._reset()
            if not was_connected or time.monotonic() - started > STALE_S:
                raise BrokerError(brief(error)) from error
        try:
            return question(self._connected())
        except Exception as error:
            self._reset()
            raise BrokerError(brief(error)) from error

    def _queue(self, producer: Producer, name: str) -> Queue:
        """The queue, bound to the connection: what isn't bound is copied and bound for every message."""
        if name not in self._queues:
            self._queues[name] = queue(name)(producer.channel)
        return self._queues[name]

    def _connected(self) -> Producer:
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self._app.connection_for_write(), auto_declare=False)
        return self._producer

    def _reset(self) -> None:
        self._queues.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.connection.collect(socket_timeout=0.1)

    def _send_all(self, producer: Producer, batch: list[Due]) -> None:
        # Kombu before 5.7 has no batches; with one, Redis gets its commands in few round trips.
        batched = producer.batch() if hasattr(producer, "batch") else nullcontext()  # type: ignore[no-untyped-call]
        with batched:
            sent = SentEvents(self._app)
            for run in batch:
                self._send(producer, run, sent)
            sent.publish_all(producer)

    def _send(self, producer: Producer, run: Due, sent: SentEvents) -> None:
        message = RunMessage(run=run.id, tenant=run.tenant_id, key=run.key, agent=run.agent_id)
        shown = {"key": run.key, "tenant": run.tenant_id, "agent": run.agent_id}
        # No ETA or countdown, ever: the visibility timeout would deliver such a message again.
        self._app.send_task(
            run.job,
            kwargs=message.kwargs(),
            queue=self._queue(producer, run.queue),
            event_dispatcher=sent,
            producer=producer,
            ignore_result=True,
            retry=False,
            argsrepr="()",
            kwargsrepr=repr(shown),
            **self._confirm,
        )


class SentEvents:
    """Takes the place of Celery's dispatcher of `task-sent`: the events of a batch go as one message.

    Monitors take both forms. One by one, they cost a third of publishing.
    """

    def __init__(self, app: Celery) -> None:
        self._dispatcher = app.events.Dispatcher(enabled=False)
        self._events: list[dict[str, Any]] = []

    def publish(self, type: str, fields: dict[str, Any], *_: Any, **__: Any) -> None:
        """Keep an event for publish_all. Celery calls this."""
        ours = self._dispatcher
        clock = ours.clock.forward()
        event = Event(
            type, hostname=ours.hostname, utcoffset=utcoffset(), pid=ours.pid, clock=clock, **fields
        )
        self._events.append(event)

    def publish_all(self, producer: Producer) -> None:
        """Tell monitors of all that was sent."""
        if self._events:
            ours = self._dispatcher
            producer.publish(  # type: ignore[no-untyped-call]
                self._events,
                exchange=ours.exchange.name,
                routing_key="task.multi",
                declare=[ours.exchange],
                serializer=ours.serializer,
                headers=ours.headers,
                delivery_mode=ours.delivery_mode,
                retry=False,
            )


def _queue_length(producer: Producer, name: str) -> int:
    connection: Any = producer.connection
    _ = connection.default_channel  # connects as configured, where channel() would pause and retry
    # A channel of its own: RabbitMQ closes the channel that asks for a queue it does not have.
    with connection.channel() as channel:
        # Declaring creates nothing in Redis, where kombu's passive form misses prefixed keys (its EXISTS has
        # no prefix). On RabbitMQ only the passive form takes a queue as it is.
        passive = connection.transport.driver_type != "redis"
        try:
            return int(channel.queue_declare(name, passive=passive, auto_delete=False).message_count)
        except connection.channel_errors as error:
            if getattr(error, "code", None) == 404:
                return 0
            raise
