"""`client.schedules`: runs by cron expression, interval or at a time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from onceonly_jobs.client import scheduled
from onceonly_jobs.client.models import AiRun
from onceonly_jobs.client.wire import Json

if TYPE_CHECKING:
    from onceonly_jobs.client.transport import Driver

BACKFILL_S = 60.0
"""A backfill makes up to 500 runs before it answers."""


class SchedulesClient:
    """Schedules, by name. Each method has a twin `..._async`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ctx = driver.context

    def create(self, name: str, **fields: Any) -> Json:
        """Make a schedule: exactly one of cron=, every_s= and at=, and what else POST /v1/schedules takes. Times may be
        datetimes. The same definition again changes nothing; another one is an ApiError (409)."""
        return self._driver.run(scheduled.create(self._ctx, name, fields))

    async def create_async(self, name: str, **fields: Any) -> Json:
        return await self._driver.arun(scheduled.create(self._ctx, name, fields))

    def list(self, *, limit: int = 50, offset: int = 0) -> Json:
        """`total`, and `items` by name."""
        return self._driver.run(scheduled.list_all(self._ctx, limit, offset))

    async def list_async(self, *, limit: int = 50, offset: int = 0) -> Json:
        return await self._driver.arun(scheduled.list_all(self._ctx, limit, offset))

    def get(self, name: str) -> Json:
        return self._driver.run(scheduled.read(self._ctx, name))

    async def get_async(self, name: str) -> Json:
        return await self._driver.arun(scheduled.read(self._ctx, name))

    def update(self, name: str, **fields: Any) -> Json:
        """Change these fields; None puts the default back."""
        return self._driver.run(scheduled.change(self._ctx, name, fields))

    async def update_async(self, name: str, **fields: Any) -> Json:
        return await self._driver.arun(scheduled.change(self._ctx, name, fields))

    def delete(self, name: str) -> Json:
        return self._driver.run(scheduled.delete(self._ctx, name))

    async def delete_async(self, name: str) -> Json:
        return await self._driver.arun(scheduled.delete(self._ctx, name))

    def pause(self, name: str) -> Json:
        """No more ticks until it is resumed; those in between are dropped."""
        return self._driver.run(scheduled.switch(self._ctx, name, "pause"))

    async def pause_async(self, name: str) -> Json:
        return await self._driver.arun(scheduled.switch(self._ctx, name, "pause"))

    def resume(self, name: str) -> Json:
        return self._driver.run(scheduled.switch(self._ctx, name, "resume"))

    async def resume_async(self, name: str) -> Json:
        return await self._driver.arun(scheduled.switch(self._ctx, name, "resume"))

    def trigger(self, name: str, id: str | None = None) -> AiRun:
        """Run its job now, under the key `trigger:<name>:<id>`; without an id, always a new run."""
        return self._driver.run(scheduled.trigger(self._ctx, name, id))

    async def trigger_async(self, name: str, id: str | None = None) -> AiRun:
        return await self._driver.arun(scheduled.trigger(self._ctx, name, id))

    def backfill(self, name: str, since: datetime | str, until: datetime | str) -> Json:
        """A run for each past tick of the range that has none, at most 500."""
        return self._driver.run(scheduled.backfill(self._ctx, name, since, until, BACKFILL_S))

    async def backfill_async(self, name: str, since: datetime | str, until: datetime | str) -> Json:
        return await self._driver.arun(scheduled.backfill(self._ctx, name, since, until, BACKFILL_S))

    def next(self, name: str, n: int = 10) -> Json:
        """The coming ticks."""
        return self._driver.run(scheduled.read(self._ctx, name, "/next", n=n))

    async def next_async(self, name: str, n: int = 10) -> Json:
        return await self._driver.arun(scheduled.read(self._ctx, name, "/next", n=n))

    def ticks(self, name: str, *, limit: int = 50, offset: int = 0) -> Json:
        """The past ticks, latest first: fired, skipped or missed, each with its run's key."""
        return self._driver.run(scheduled.read(self._ctx, name, "/ticks", limit=limit, offset=offset))

    async def ticks_async(self, name: str, *, limit: int = 50, offset: int = 0) -> Json:
        return await self._driver.arun(scheduled.read(self._ctx, name, "/ticks", limit=limit, offset=offset))
