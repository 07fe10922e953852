"""What a worker's process knows of the runs that it has claimed together, and how many it claims."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from support.claims import make_claim

from onceonly_jobs.config import Settings
from onceonly_jobs.domain.effects import Effect
from onceonly_jobs.services.claims_many import Progress
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.held import Held
from onceonly_jobs.worker.interrupt import Interrupt
from onceonly_jobs.worker.jobs import Job
from onceonly_jobs.worker.keeper import Keeper
from onceonly_jobs.worker.pace import BATCH_S, MOST, Pace
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.shared import Shared
from onceonly_jobs.worker.turns import Turns


def handler(ctx: JobContext) -> None:
    """Does nothing."""


def paced(*seconds: float) -> Pace:
    pace = Pace()
    for each in seconds:
        pace.note("j", each)
    return pace


@pytest.mark.parametrize(
    ("seconds", "count"),
    [((), 1), ((0.0,), MOST), ((0.001,), 20), ((0.019,), 1), ((0.0001, 0.0001, 0.01), 9)],
)
def test_a_batch_takes_as_long_as_it_may(seconds: tuple[float, ...], count: int) -> None:
    assert paced(*seconds).count == count


def test_a_slow_job_is_known_until_it_has_been_quick_for_a_while() -> None:
    pace = paced(1.0)
    assert pace.slow("j")
    assert not pace.slow("never seen")
    assert pace.count == 1
    looks = 0
    while pace.slow("j"):
        pace.note("j", BATCH_S / 10)
        looks += 1
    assert 10 < looks < 40


@pytest.mark.parametrize(
    ("job", "light"),
    [
        (Job(name="j", handler=handler), True),
        (Job(name="j", handler=handler, time_limit_s=60), False),
        (Job(name="j", handler=handler, max_crashes=1), False),
        (Job(name="j", handler=handler, effect=Effect.READ), False),
        (Job(name="onceonly.actions", handler=handler), False),
    ],
)
def test_only_jobs_about_which_there_is_nothing_special_are_light(job: Job, light: bool) -> None:
    assert job.light is light


@pytest.mark.parametrize(
    ("worker", "task", "taken"),
    [
        ({}, {}, [True, True]),
        ({}, {"rate_limit": "10/m"}, [False, True]),
        ({}, {"rate_limit": 0.5}, [False, True]),
        ({}, {"rate_limit": "0"}, [True, True]),
        ({}, {"time_limit": 30}, [False, True]),
        ({}, {"soft_time_limit": 30}, [False, True]),
        ({"time_limit": 30}, {}, [False, False]),
        ({"soft_time_limit": 30}, {}, [False, False]),
    ],
)
def test_what_celery_limits_is_not_taken_in_turns(
    worker: dict[str, Any], task: dict[str, Any], taken: list[bool]
) -> None:
    jobs = [Job(name=name, handler=handler) for name in ("limited", "other")]
    app = Celery(set_as_current=False)
    app.task(handler, name="limited", shared=False, **task)
    app.task(handler, name="other", shared=False)
    turns = Turns(
        Runtime.of(Settings.load(database_url="postgresql://nowhere/x", broker_url="redis://nowhere")), jobs
    )
    assert [job in turns for job in jobs] == [True, True]
    turns.note_limits(SimpleNamespace(**{"app": app, "time_limit": None, "soft_time_limit": None} | worker))
    assert [job in turns for job in jobs] == taken


def test_a_process_tells_how_far_it_has_come() -> None:
    shared = Shared()
    pid = os.getpid()
    assert shared.progress(pid) is None
    shared.begin(0)
    assert shared.progress(pid) == Progress(0, at_work=False)
    shared.begin(7)
    assert shared.progress(pid) == Progress(7, at_work=True)
    shared.rest()
    assert shared.progress(pid) == Progress(7, at_work=False)
    assert shared.progress(pid + 4096) is None, "the same place, and another process"
    shared.leave()
    assert shared.progress(pid) is None


@pytest.fixture
def keeper() -> Keeper:
    runtime = Runtime.of(Settings.load(database_url="postgresql://nowhere/x", broker_url="redis://nowhere"))
    return Keeper(runtime, make_claim(), Interrupt())


def test_a_claim_is_in_one_place_at_a_time(keeper: Keeper) -> None:
    shared = Shared()
    held = Held(shared)
    first, second, third = (make_claim(id=number, fencing_token=number) for number in (1, 2, 3))
    held.add([first, second, third])
    assert held.next() is first
    assert shared.progress(os.getpid()) == Progress(1, at_work=True)
    held.begin(first, keeper, "task")
    assert held.unattended() == [second, third]
    assert held.slow(0) is not None
    assert held.slow(0) is None, "it is told once"
    assert held.kept
    held.returned(stored=False)
    assert held.unattended() == [second, third, first]
    held.drop({2})
    held.ended([first])
    assert held.unattended() == held.take_waiting() == [third]
    assert held.next() is None
    assert held.waiting_for() == 0


def test_a_keeper_that_was_never_needed_never_starts(keeper: Keeper) -> None:
    keeper.end()
    keeper.start()
    assert keeper._thread is None
