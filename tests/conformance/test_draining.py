"""A worker that ends takes no more runs, and hands back what it can't finish: by any pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from onceonly_jobs.config import Settings
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import outbox, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.jobs import Job
from onceonly_jobs.worker.lifecycle import Fate, Outcome, run_job
from onceonly_jobs.worker.runtime import Runtime


class Worker:
    """A worker in this process, and one run for it."""

    def __init__(self, settings: Settings, db: Database, caller: Caller) -> None:
        self.db = db
        self.runtime = Runtime.of(settings)
        self.started = threading.Event()
        spec = JobSpec(name="long", queue="onceonly")
        taking = runs.job_taking(caller, spec, key="k", ttl_s=600, metadata=None)
        taken = db.run(runs.take, caller, taking)
        assert isinstance(taken, Taken)
        self.run = taken.run.id

    def work(self, handler: Callable[[JobContext], Any]) -> Outcome:
        return run_job(self.runtime, Job(name="long", handler=handler), self.run)

    def long(self, ctx: JobContext) -> None:
        """In small steps: in a thread, only between two of them it can be interrupted."""
        self.started.set()
        for _ in range(6000):
            time.sleep(0.01)

    def row(self) -> dict[str, Any]:
        query = "SELECT *, publish_at <= onceonly_now() AS publishable FROM runs WHERE id = :id"
        with self.db.engine.connect() as connection:
            return dict(connection.execute(sa.text(query), {"id": self.run}).mappings().one())


@pytest.fixture
def worker(settings: Settings, db: Database, caller: Caller) -> Worker:
    return Worker(settings, db, caller)


def handed_back(worker: Worker) -> bool:
    """Whether the run waits for another worker, who may have it at once."""
    row = worker.row()
    return (row["state"], row["lease_until_at"], row["publishable"]) == ("queued", None, True)


def test_a_worker_that_ends_hands_its_run_back(worker: Worker) -> None:
    def end() -> None:
        worker.started.wait(60)
        worker.runtime.shared.drain(0)

    threading.Thread(target=end).start()
    assert worker.work(worker.long).fate is Fate.HANDED_BACK
    assert handed_back(worker)


def test_so_does_one_whose_handlers_run_in_threads(worker: Worker) -> None:
    fates: list[Fate] = []
    thread = threading.Thread(target=lambda: fates.append(worker.work(worker.long).fate))
    thread.start()
    assert worker.started.wait(60)
    worker.runtime.shared.drain(0)
    thread.join(60)
    assert fates == [Fate.HANDED_BACK]
    assert handed_back(worker)


def test_what_ends_in_time_is_not_disturbed(worker: Worker) -> None:
    def handler(ctx: JobContext) -> dict[str, Any]:
        worker.runtime.shared.drain(60)
        ctx.check()
        return {"done": True}

    assert worker.work(handler).fate is Fate.COMPLETED
    assert worker.row()["result"] == {"done": True}


def test_a_second_signal_waits_for_nothing(worker: Worker) -> None:
    def handler(ctx: JobContext) -> None:
        worker.runtime.shared.drain(60)
        worker.runtime.shared.drain(60)
        worker.long(ctx)

    assert worker.work(handler).fate is Fate.HANDED_BACK
    assert handed_back(worker)


def test_a_worker_that_ends_takes_no_more_and_says_so(worker: Worker) -> None:
    """The message is used up, so another one has to be sent: not only when the time after the last one is over."""
    worker.db.run(outbox.take_due, 10, 60.0, [])
    assert not worker.row()["publishable"]
    worker.runtime.shared.drain(60)
    assert worker.work(worker.long).fate is Fate.NOT_CLAIMED
    assert handed_back(worker)
    assert not worker.started.is_set()
