"""What an API process holds: the database, the publisher, the hints, the rate limiter and the job catalogue."""

from __future__ import annotations

import time
from dataclasses import dataclass

from onceonly_jobs.api.ratelimit import RateLimiter
from onceonly_jobs.api.streaming import OpenStreams
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.background import BackgroundPublisher
from onceonly_jobs.dispatch.hints import HintListener
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import UnknownTask
from onceonly_jobs.services import runs
from onceonly_jobs.store.database import Database

CATALOGUE_AGE_S = 2.0


class JobCatalogue:
    """The registered jobs, read again when they are old or when a name is missing."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._specs: list[JobSpec] = []
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
        self._specs = await self._db.arun(runs.registered_jobs)
        self._read_at = time.monotonic()


@dataclass(frozen=True)
class State:
    settings: Settings
    db: Database
    publisher: BackgroundPublisher
    hints: HintListener
    limiter: RateLimiter
    catalogue: JobCatalogue
    streams: OpenStreams

    @classmethod
    def of(cls, settings: Settings) -> State:
        db = Database(settings.require_database_url(), pool_size=settings.database_pool_size)
        return cls(
            settings=settings,
            db=db,
            publisher=BackgroundPublisher(settings),
            hints=HintListener(settings),
            limiter=RateLimiter(settings),
            catalogue=JobCatalogue(db, settings),
            streams=OpenStreams(settings.max_streams),
        )

    async def aclose(self) -> None:
        await self.hints.aclose()
        self.publisher.close()
        await self.db.aclose()
