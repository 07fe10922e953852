"""What an API process holds: the database, the publisher, the hints, the rate limiter and the job catalogue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy.ext.asyncio  # noqa: F401 - which the database else loads when the first request waits for it

from onceonly_jobs.api.gathering import LANES, A, Gatherer, Lane, Q
from onceonly_jobs.api.keyring import Keyring
from onceonly_jobs.api.ratelimit import RateLimiter
from onceonly_jobs.api.streaming import OpenStreams
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.background import BackgroundPublisher
from onceonly_jobs.dispatch.hints import HintListener
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import UnknownTask
from onceonly_jobs.services import calls, locks, runs
from onceonly_jobs.services.calls import Asked
from onceonly_jobs.store.calls import Judged
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.line import Line
from onceonly_jobs.store.locks import Check, LockAnswer
from onceonly_jobs.store.runs import Taken, Taking
from onceonly_jobs.store.statement import Operation

CATALOGUE_AGE_S = 2.0
CONNECT_TIMEOUT_S = 2


class JobCatalogue:
    """The registered jobs, read again when they are old or when a name is missing."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._specs: dict[str, JobSpec] = {}
        self._read_at = float("-inf")

    async def pick(self, task: str | None, key: str) -> JobSpec:
        """The job of a run. Raises UnknownTask."""
        if time.monotonic() - self._read_at > CATALOGUE_AGE_S:
            await self._read()
        try:
            return self._pick(task, key)
        except UnknownTask:
            await self._read()
            return self._pick(task, key)

    def _pick(self, task: str | None, key: str) -> JobSpec:
        return runs.pick_job(self._specs, task, key, self._settings.default_job, self._settings.default_queue)

    async def _read(self) -> None:
        self._specs = runs.by_name(await self._db.arun(runs.registered_jobs))
        self._read_at = time.monotonic()


def lanes(db: Database, operation: Callable[[list[Q]], Operation[list[A]]]) -> list[Lane[Q, A]]:
    """For a Gatherer of this operation's questions, each over a connection of its own."""

    def lane(line: Line) -> Lane[Q, A]:
        return lambda questions: db.arun_along(line, operation, questions)

    return [lane(db.line()) for _ in range(LANES)]


def named(asked: Check | Taking) -> tuple[str, str]:
    """What a Gatherer tells such questions by."""
    return asked.tenant_id, asked.key


@dataclass(frozen=True)
class State:
    settings: Settings
    db: Database
    publisher: BackgroundPublisher
    hints: HintListener
    limiter: RateLimiter
    catalogue: JobCatalogue
    streams: OpenStreams
    keyring: Keyring
    locks: Gatherer[Check, LockAnswer | None]
    takings: Gatherer[Taking, Taken | None]
    governed: Gatherer[Taking, Taken | None]
    calls: Gatherer[Asked, Judged | None]

    @classmethod
    def of(cls, settings: Settings) -> State:
        db = Database(
            settings.require_database_url(),
            pool_size=settings.database_pool_size,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            pool_timeout_s=settings.api_pool_timeout_s,
            statement_timeout_s=settings.api_statement_timeout_s,
        )
        return cls(
            settings=settings,
            db=db,
            publisher=BackgroundPublisher(settings),
            hints=HintListener(settings),
            limiter=RateLimiter(settings),
            catalogue=JobCatalogue(db, settings),
            streams=OpenStreams(settings.max_streams),
            keyring=Keyring(db, settings.plan_table),
            locks=Gatherer(lanes(db, locks.check_many), named),
            takings=Gatherer(lanes(db, runs.take_many), named),
            governed=Gatherer(lanes(db, runs.take_many), named),
            calls=Gatherer(lanes(db, calls.judge_many), lambda asked: (asked.caller.tenant_id, asked.key)),
        )

    async def aclose(self) -> None:
        await self.hints.aclose()
        self.publisher.close()
        await self.db.aclose()
