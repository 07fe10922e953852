"""A user's own Celery application with guarded tasks."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from celery import Celery, Task

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.integrations.celery import once


@dataclass
class Receipt:
    order: str
    number: int


class Declined(Exception):
    """The task broke."""


class CeleryShop:
    """`calls` counts by order. An order is held until told to go on, if `held` is its name."""

    def __init__(self, client: OnceOnly, **conf: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.held = ""
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.app = app = Celery("shop", set_as_current=False)
        app.conf.update(**conf)

        @app.task(shared=False, bind=True, name="shop.charge", acks_late=True)
        @once(client, key=lambda order, fail=0: f"charge:{order}", ttl=30)
        def charge(self: Task, order: str, fail: int = 0) -> Receipt:
            """Charge an order, after failing so many times."""
            return work(order, fail)

        @app.task(shared=False, bind=True, max_retries=2)
        @once(client)
        def persistent(self: Task, order: str, fail: int = 0) -> int:
            try:
                return work(order, fail).number
            except Declined as error:
                raise self.retry(exc=error, countdown=0) from error

        @app.task(shared=False, autoretry_for=(Declined,), max_retries=1, default_retry_delay=0)
        @once(client, key=lambda order, fail=0: f"auto:{order}")
        def automatic(order: str, fail: int = 0) -> int:
            return work(order, fail).number

        @app.task(shared=False)
        @once(client, key=lambda order, fail=0: f"again:{order}", on_error="release", in_flight="ignore")
        def releasing(order: str, fail: int = 0) -> int:
            return work(order, fail).number

        def work(order: str, fail: int) -> Receipt:
            self.calls[order] += 1
            if order == self.held and self.calls[order] == 1:
                self.entered.set()
                assert self.go_on.wait(30)
            if self.calls[order] <= fail:
                raise Declined(order)
            return Receipt(order, self.calls[order])

        self.charge, self.persistent = charge, persistent
        self.automatic, self.releasing = automatic, releasing
