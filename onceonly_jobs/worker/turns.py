"""What a process of a worker does after the run of a message: it takes further ones that are due, without messages.

A message costs more than a run that does little. So under load most runs need none: those of light jobs that are due
and not published are claimed several at a time, and their results are stored several at a time. Each of them has its
own claim and is guarded by it. docs/DELIVERY.md says what this changes, and what it does not.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import Any

from celery import Task, bootsteps
from celery.utils.time import rate

from onceonly_jobs import metrics
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.monitors import TaskEvents
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import claims, claims_many
from onceonly_jobs.worker.completions import Completions, Ended
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.held import AtWork, Held
from onceonly_jobs.worker.interrupt import Interrupt
from onceonly_jobs.worker.jobs import Job
from onceonly_jobs.worker.keeper import Keeper
from onceonly_jobs.worker.lifecycle import (
    VERDICTS,
    Completed,
    Outcome,
    Verdict,
    answered,
    attempted,
    end_of_process,
    log_end,
    news,
    recorded,
    reporting,
)
from onceonly_jobs.worker.monitored import EventFields, begun_events, ended_event, new_task_id
from onceonly_jobs.worker.observed import begun, counted, named, told, traced
from onceonly_jobs.worker.pace import Pace
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.warden import LAST_S, Warden

logger = logging.getLogger(__name__)

TURN_S = 0.1
"""How long a process goes on before it takes a message again: what has one must not wait for ever."""
REST_S = 0.05
"""After a look that has found nothing, how long to leave it."""
TROUBLE_S = 1.0
LOOK_S = 1.0
"""How often to look for limits that Celery was told of."""
UNSTORED = 128
"""So many results may be on their way when further runs are claimed."""


class Turn:
    """One go: from the first claim to the storing of the last result."""

    def __init__(
        self,
        runtime: Runtime,
        jobs: Mapping[str, Job],
        pace: Pace,
        tell: Callable[[list[EventFields]], None],
        queue: str,
    ) -> None:
        self._runtime = runtime
        self._jobs = jobs
        self._pace = pace
        self._tell_monitors = tell
        self._queue = queue
        self._held = Held(runtime.shared)
        self._completions = Completions(runtime, self._tell)
        self._warden = Warden(runtime, self._held, self._tell_of_slow, self._completions.stalled_s)

    def serve(self) -> bool:
        """Whether there was anything to do. Raises what ends the process."""
        until, asked_at = time.monotonic() + TURN_S, time.monotonic()
        batch = self._claim()
        if not batch:
            return False
        with self._completions, self._warden:
            try:
                while batch:
                    self._work(batch, asked_at)
                    if time.monotonic() > until or self._runtime.shared.draining:
                        break
                    self._completions.wait(UNSTORED)
                    asked_at = time.monotonic()
                    batch = self._claim()
            except Exception as error:
                logger.warning("a turn ends early: %s", brief(error))
                self._warden.give_back(self._held.take_waiting())
            except BaseException:  # this process is to end
                self._warden.give_back(self._held.take_waiting(), LAST_S)
                self._completions.wait(timeout_s=LAST_S)
                raise
            self._completions.wait()
        return True

    def _claim(self) -> list[Claim]:
        quick = [name for name in self._jobs if not self._pace.slow(name)]
        slow = [name for name in self._jobs if self._pace.slow(name)]
        return self._claim_of(quick, self._pace.count) or self._claim_of(slow, 1)

    def _claim_of(self, jobs: Collection[str], count: int) -> list[Claim]:
        """Raises SQLAlchemyError when the database does not answer for a lease's time."""
        if not jobs:
            return []
        lease_s, lease_id = self._runtime.settings.worker_lease_s, claims.new_lease_id()
        repeated = False

        def claim() -> list[Claim]:
            nonlocal repeated
            again, repeated = repeated, True
            return self._runtime.database.run(
                claims_many.claim_due,
                count,
                self._queue,
                jobs,
                lease_id,
                lease_s,
                self._runtime.holder,
                repeated=again,
            )

        claimed = answered(claim, give_up_after_s=lease_s)
        if claimed:
            metrics.count(metrics.DIRECT_CLAIMS, "claimed", by=len(claimed))
            self._runtime.shared.claimed(claimed[-1].claimed_at)
        return claimed

    def _work(self, batch: list[Claim], asked_at: float) -> None:
        """Call the handlers one after the other, but for those that the warden gives back."""
        self._held.add(batch)
        while (claim := self._held.next()) is not None:
            try:
                work, verdict = self._called(self._jobs[claim.job], claim, asked_at)
            except (SystemExit, KeyboardInterrupt) as end:
                end_of_process(self._runtime, claim, end)
                raise
            self._conclude(work, verdict)

    def _called(self, job: Job, claim: Claim, asked_at: float) -> tuple[AtWork, Verdict]:
        """What its handler's call has come to. The warden begins to keep it when it is slow."""
        begun(claim)
        interrupt = Interrupt()
        with named(claim), traced(claim) as span:
            keeper = Keeper(self._runtime, claim, interrupt, since=asked_at)
            work = self._held.begin(claim, keeper, new_task_id())
            report = reporting(self._runtime, claim, keeper)
            context = JobContext(claim, report, interrupt, keeper.time_left_s)
            verdict = attempted(self._runtime, job, claim, context, interrupt)
            self._pace.note(claim.job, time.monotonic() - work.since)
            told(span, VERDICTS[type(verdict)].name.lower())  # what the database says of it comes later
        return work, verdict

    def _conclude(self, work: AtWork, verdict: Verdict) -> None:
        if isinstance(verdict, Completed) and not work.kept:
            self._held.returned(stored=False)
            work.keeper.end()
            if work.kept:  # meanwhile, and its keeper has taken the watch with it
                self._warden.watch()
            self._completions.add(_ended(work), verdict)
        else:
            self._record(work, verdict)

    def _record(self, work: AtWork, verdict: Verdict) -> None:
        """By itself, and kept by its keeper for as long as that takes."""
        work.kept = True
        work.keeper.start()
        outcome = recorded(self._runtime, work.claim, verdict)
        work.keeper.end()
        self._warden.watch()
        ended = _ended(work)
        self._held.returned(stored=True)
        self._tell([(ended, outcome)])

    def _tell(self, ended: list[tuple[Ended, Outcome]]) -> None:
        """Of results that are stored, and of all else that has ended."""
        self._held.ended([each.claim for each, _ in ended])
        self._runtime.hints.all_finished(
            [name for each, outcome in ended for name in news(each.claim, outcome)]
        )
        for each, outcome in ended:
            counted(each.claim, outcome.fate.name.lower(), each.ended_at - each.began_at)
            with named(each.claim):
                log_end(each.claim, outcome)
        if self._runtime.shared.watched:
            self._tell_monitors([event for each, outcome in ended for event in _events(each, outcome)])

    def _tell_of_slow(self, work: AtWork) -> None:
        if self._runtime.shared.watched:
            work.shown = True
            self._tell_monitors(begun_events(work.claim, work.task, work.began_at))


def _ended(work: AtWork) -> Ended:
    return Ended(work.claim, work.task, work.began_at, time.time(), work.shown)


def _events(ended: Ended, outcome: Outcome) -> list[EventFields]:
    before = [] if ended.shown else begun_events(ended.claim, ended.task, ended.began_at)
    return [*before, ended_event(outcome, ended.task, ended.began_at, ended.ended_at)]


class Turns:
    """Of one process of a worker's pool. Made before it, by the worker."""

    def __init__(self, runtime: Runtime, jobs: Iterable[Job]) -> None:
        self._runtime = runtime
        self._jobs = {job.name: job for job in jobs if job.light}
        self._limited = RawArray(ctypes.c_bool, len(self._jobs))
        self._pace = Pace()
        self._events = TaskEvents(runtime.settings)
        self._rest_until = 0.0

    def __contains__(self, job: Job) -> bool:
        """Whether its runs are taken in turns."""
        return job.name in self._unlimited()

    def note_limits(self, worker: Any) -> None:
        """In the worker's main process: Celery's limits of time and rate hold for messages. What has one needs one."""
        timed = bool(worker.time_limit or worker.soft_time_limit)
        for place, name in enumerate(self._jobs):
            self._limited[place] = timed or _limited(worker.app.tasks[name])

    def _unlimited(self) -> dict[str, Job]:
        return {
            name: job
            for (name, job), limited in zip(self._jobs.items(), self._limited, strict=True)
            if not limited
        }

    def take(self, queue: str, worker: str) -> None:
        """Serve runs of a queue for a while, if there are any that need no message.

        worker: by which name monitors know it. Raises what ends the process, and nothing else.
        """
        runtime = self._runtime
        jobs = self._unlimited() if runtime.settings.direct_claims and runtime.expendable else {}
        if not jobs or runtime.shared.draining or time.monotonic() < self._rest_until:
            return
        runtime.shared.begin(0)
        try:
            if not Turn(runtime, jobs, self._pace, partial(self._events.send, worker), queue).serve():
                self._rest_until = time.monotonic() + REST_S
        except Exception as error:
            logger.warning("no runs taken without messages: %s", brief(error))
            self._rest_until = time.monotonic() + TROUBLE_S
        finally:
            runtime.shared.leave()


def _limited(task: Task) -> bool:
    return bool(task.time_limit or task.soft_time_limit or rate(task.rate_limit))


def noting_limits(turns: Turns) -> type[bootsteps.StartStopStep]:
    """The step of a worker that keeps an eye on Celery's limits, which it may be told of while it runs."""

    class NoteLimits(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            turns.note_limits(worker)

        def register_with_event_loop(self, worker: Any, hub: Any) -> None:
            hub.call_repeatedly(LOOK_S, turns.note_limits, worker)

    return NoteLimits
