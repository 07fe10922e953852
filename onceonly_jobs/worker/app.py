"""A Celery app that serves jobs: one Celery task per job, under the job's own name."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from billiard.exceptions import Terminated
from celery import Celery, Task, signals
from celery.exceptions import Retry as CeleryRetry
from celery.utils.log import get_multiprocessing_logger
from celery.utils.nodenames import default_nodename, gethostname
from celery.worker.request import Request
from sqlalchemy.exc import SQLAlchemyError

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.dispatch.celeryconf import queue, worker_conf
from onceonly_jobs.services import claims, schedules
from onceonly_jobs.store.database import Database
from onceonly_jobs.telemetry import configure_logging
from onceonly_jobs.worker import confirm
from onceonly_jobs.worker.deaths import QuickLook, reporting_requests
from onceonly_jobs.worker.files import READY_FILE, touch
from onceonly_jobs.worker.handlers import allowed_addresses, builtin
from onceonly_jobs.worker.jobs import Job, Registry, default_registry
from onceonly_jobs.worker.life import Drain, live
from onceonly_jobs.worker.lifecycle import Fate, Outcome, run_job
from onceonly_jobs.worker.monitored import WatchedStep
from onceonly_jobs.worker.operators import show_to_operators
from onceonly_jobs.worker.runtime import Runtime
from onceonly_jobs.worker.turns import Turns, noting_limits

logger = logging.getLogger(__name__)

ANNOUNCE_PAUSE_S = 2.0

_AT_EASE = frozenset((Fate.COMPLETED, Fate.FAILED, Fate.RETRIED, Fate.CANCELLED, Fate.NOT_CLAIMED))
"""After these, a worker is as able to go on as before."""


class RunFailed(Exception):
    """A run has failed for good, which is recorded; this shows it in Celery's monitors too."""


def create_worker(settings: Settings | None = None, registry: Registry | None = None) -> Celery:
    """A Celery app for `celery -A ... worker` and `... beat`.

    It serves the given jobs, by default all that `@job` has registered, and the built-in ones.
    """
    settings = settings or Settings.load()
    runtime = Runtime.of(settings)
    jobs = builtin(runtime, default_registry if registry is None else registry)
    app = Celery("onceonly", set_as_current=True)
    app.conf.update(worker_conf(settings))
    app.conf.update(
        task_queues=[queue(name) for name in sorted(_queues(settings, jobs))],
        beat_scheduler="onceonly_jobs.worker.beat:Scheduler",
    )
    request, turns = reporting_requests(runtime), Turns(runtime, jobs)
    app.steps["worker"].update((QuickLook, WatchedStep, Drain, noting_limits(turns)))
    for job in jobs:
        _add_task(app, runtime, job, request, turns)
    confirm.add_task(app, runtime, jobs, allowed_addresses(settings))
    app.onceonly = runtime
    _connect_signals(app, runtime, jobs)
    live(app, runtime, [job.name for job in jobs])
    show_to_operators(app, settings)
    return app


def _queues(settings: Settings, jobs: Registry) -> set[str]:
    return {settings.default_queue, *(job.queue or settings.default_queue for job in jobs)}


def _add_task(app: Celery, runtime: Runtime, job: Job, request: type[Request], turns: Turns) -> None:
    def execute(self: Task, run: int, **_shown: Any) -> str:
        outcome = run_job(runtime, job, run)
        if job in turns and outcome.fate in _AT_EASE:
            turns.take(str(self.request.delivery_info.get("routing_key")), self.request.hostname)
        return _celery_result(outcome)

    execute.__doc__ = job.handler.__doc__
    app.task(
        execute,
        name=job.name,
        bind=True,
        Request=request,
        shared=False,
        lazy=False,
        ignore_result=True,
        throws=(RunFailed, Terminated),
    )


def _celery_result(outcome: Outcome) -> str:
    """The outcome as Celery's monitors show it. Nothing depends on it: results are in the database."""
    if outcome.fate in (Fate.RETRIED, Fate.HANDED_BACK, Fate.UNREACHABLE):
        raise CeleryRetry(exc=RunFailed(outcome.detail or "the database is away"))
    if outcome.fate is Fate.CANCELLED:
        raise Terminated("the run was cancelled")
    if outcome.fate in (Fate.FAILED, Fate.LOST):
        raise RunFailed(outcome.detail or outcome.fate.name.lower())
    return outcome.fate.name.lower()


def announce(settings: Settings, jobs: Registry) -> None:
    """Make the jobs known to the API, and their schedules. Waits for the database for as long as it takes."""
    database = Database(settings.require_database_url(), pool_size=1)
    specs = [job.spec(settings.default_queue) for job in jobs]
    while True:
        try:
            database.run(claims.announce, specs)
            _declare(settings, database, jobs)
        except SQLAlchemyError as error:
            logger.warning("jobs not announced, the database is away: %s", brief(error))
            time.sleep(ANNOUNCE_PAUSE_S)
        else:
            break
    database.close()


def _declare(settings: Settings, database: Database, jobs: Registry) -> None:
    requests = [job.schedule for job in jobs if job.schedule is not None]
    if not requests:
        return
    declared = database.run(schedules.declare, requests, settings)
    for name in declared.kept:
        logger.warning("schedule %s was made over the API: what the code declares is left out", name)
    for name in declared.deleted:
        logger.info("schedule %s was deleted over the API, and stays so", name)


def _connect_signals(app: Celery, runtime: Runtime, jobs: Registry) -> None:
    settings, component = runtime.settings, ["beat"]  # unless it turns out to be a worker

    def named(instance: Any, **_: Any) -> None:
        component[0] = "worker"
        # Several workers may run on one machine. What is random can't meet its like.
        if instance.app is app and instance.hostname == default_nodename(None):
            instance.hostname = f"worker-{secrets.token_hex(4)}@{gethostname()}"

    def logging_set_up(loglevel: int | str | None = None, **_: Any) -> None:
        configure_logging(_level(settings, loglevel), component[0], settings.log_format, settings.secrets)
        get_multiprocessing_logger().propagate = True  # its word on dead children, in our form
        logging.getLogger("celery.app.trace").setLevel(logging.WARNING)  # our own line per run says more

    def starting(sender: Any, **_: Any) -> None:
        if sender.app is app:
            announce(settings, jobs)

    def ready(sender: Any, **_: Any) -> None:
        if sender.app is app:
            touch(READY_FILE)

    signals.celeryd_init.connect(named, weak=False)
    signals.setup_logging.connect(logging_set_up, weak=False)
    signals.worker_init.connect(starting, weak=False)
    signals.worker_ready.connect(ready, weak=False)


def _level(settings: Settings, given: int | str | None) -> str:
    """The more talkative of ONCEONLY_LOG_LEVEL and Celery's own --loglevel."""
    configured = logging.getLevelName(settings.log_level)
    asked = logging.getLevelName(given) if isinstance(given, str) else given
    least = min(configured, asked) if isinstance(asked, int) and asked > 0 else configured
    return str(logging.getLevelName(least))
