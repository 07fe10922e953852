"""`client.dead`: runs that failed for good, until somebody replays or discards them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onceonly_jobs.client import dead_letters
from onceonly_jobs.client.wire import Json

if TYPE_CHECKING:
    from onceonly_jobs.client.transport import Driver


class DeadClient:
    """Dead letters, by key. Each method has a twin `..._async`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ctx = driver.context

    def list(
        self, *, task: str | None = None, agent_id: str | None = None, limit: int = 50, offset: int = 0
    ) -> Json:
        """`total`, and `items`, oldest first."""
        return self._driver.run(dead_letters.list_all(self._ctx, limit, offset, task=task, agent_id=agent_id))

    async def list_async(
        self, *, task: str | None = None, agent_id: str | None = None, limit: int = 50, offset: int = 0
    ) -> Json:
        return await self._driver.arun(
            dead_letters.list_all(self._ctx, limit, offset, task=task, agent_id=agent_id)
        )

    def show(self, key: str) -> Json:
        """A dead letter with its `metadata`, its `errors` and its latest `events`."""
        return self._driver.run(dead_letters.read(self._ctx, key))

    async def show_async(self, key: str) -> Json:
        return await self._driver.arun(dead_letters.read(self._ctx, key))

    def replay(self, key: str, *, decision_id: int | None = None) -> Json:
        """Queue the run again, with all of its attempts. With the `decision_id` of the list, a repeat can't replay
        a later failure. What is no dead letter is an ApiError (409)."""
        return self._driver.run(dead_letters.decide(self._ctx, "replay", key, decision_id=decision_id))

    async def replay_async(self, key: str, *, decision_id: int | None = None) -> Json:
        return await self._driver.arun(dead_letters.decide(self._ctx, "replay", key, decision_id=decision_id))

    def discard(self, key: str, reason: str | None = None, *, decision_id: int | None = None) -> Json:
        """Take it off the list; it stays failed until its retention is over."""
        return self._driver.run(
            dead_letters.decide(self._ctx, "discard", key, reason=reason, decision_id=decision_id)
        )

    async def discard_async(
        self, key: str, reason: str | None = None, *, decision_id: int | None = None
    ) -> Json:
        return await self._driver.arun(
            dead_letters.decide(self._ctx, "discard", key, reason=reason, decision_id=decision_id)
        )
