"""What concurrent requests ask of the database, joined: one statement, one commit, one trip there and back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextvars import Context
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError

from onceonly_jobs.store.database import refused_value

Q = TypeVar("Q")
A = TypeVar("A")

MOST = 64
"""Questions in one statement."""
LANES = 2
"""Statements on their way at once: while Postgres makes one durable, the next is being put together."""

Lane = Callable[[list[Q]], Awaitable[list[A]]]
"""Asks several questions at once. One batch at a time."""


class Gatherer(Generic[Q, A]):
    """Sends what was asked while the statements before were on their way, together. Nobody waits for company.

    Two questions with the same name never travel together: each sees what the one before it did. A value that
    Postgres can't keep is refused to whoever sent it, and to nobody else.
    """

    def __init__(self, lanes: Iterable[Lane[Q, A]], name: Callable[[Q], Hashable]) -> None:
        self._idle = list(lanes)
        self._name = name
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._working: set[asyncio.Task[None]] = set()

    async def ask(self, question: Q) -> A:
        """The question's answer. Raises what asking raises."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._idle:
            # In a context of its own: what it logs and traces is not this request's alone.
            work = asyncio.create_task(self._work(self._idle.pop()), context=Context())
            self._working.add(work)
            work.add_done_callback(self._working.discard)
        return await answer

    async def _work(self, lane: Lane[Q, A]) -> None:
        try:
            while batch := self._next():
                await self._answer(lane, batch)
        finally:
            self._idle.append(lane)

    def _next(self) -> list[tuple[Q, asyncio.Future[A]]]:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        names: set[Hashable] = set()
        later = []
        while self._waiting and len(batch) < MOST:
            asked = self._waiting.popleft()
            name = self._name(asked[0])
            if name in names:
                later.append(asked)
            else:
                names.add(name)
                batch.append(asked)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _answer(self, lane: Lane[Q, A], batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await lane([question for question, _ in batch])
        except Exception as error:
            if len(batch) > 1 and isinstance(error, DBAPIError) and refused_value(error):
                for asked in batch:
                    await self._answer(lane, [asked])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # whoever asked may have gone
                    future.set_result(answer)
