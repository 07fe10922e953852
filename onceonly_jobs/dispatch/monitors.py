"""Celery's events of tasks that no message was sent for, so that its monitors show them as any other."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from celery import Celery

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.celeryconf import producer_conf

logger = logging.getLogger(__name__)

REST_S = 10.0
"""How long a broker that failed is left alone: what it was not told of is not told."""
MOST = 1_000_000
"""More events than are ever held: they are sent when asked to."""


class TaskEvents:
    """Sends events in the name of a worker, at best: it never raises. From any thread; connects per process, on use."""

    def __init__(self, settings: Settings) -> None:
        self._conf = producer_conf(settings)
        self._dispatcher: Any = None
        self._pid = os.getpid()
        self._alone = threading.Lock()
        self._rest_until = 0.0

    def send(self, worker: str, events: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """worker: its node name. events: their types and fields, oldest first; all of them in one message."""
        with self._alone:
            if time.monotonic() >= self._rest_until:
                self._send(worker, events)

    def _send(self, worker: str, events: Iterable[tuple[str, dict[str, Any]]]) -> None:
        try:
            dispatcher = self._connected(worker)
            for type_, fields in events:
                dispatcher.send(type_, **fields)
            dispatcher.flush(errors=False)
        except Exception as error:
            logger.debug("monitors not told: %s", brief(error))
            self._drop()
            self._rest_until = time.monotonic() + REST_S

    def _drop(self) -> None:
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None and self._pid == os.getpid():
            dispatcher.connection.collect(socket_timeout=0.1)

    def _connected(self, worker: str) -> Any:
        if self._dispatcher is None or self._pid != os.getpid() or self._dispatcher.hostname != worker:
            app = Celery("onceonly", set_as_current=False)
            app.conf.update(self._conf)
            self._dispatcher = app.events.Dispatcher(
                app.connection_for_write(),
                hostname=worker,
                buffer_group={"task"},
                buffer_limit=MOST,
                buffer_while_offline=False,
            )
            self._pid = os.getpid()
        return self._dispatcher
