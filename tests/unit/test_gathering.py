"""What concurrent requests ask is asked together, and each gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from onceonly_jobs.api.gathering import MOST, Gatherer


class Lane:
    """Answers a question with itself, once it is let go on."""

    def __init__(self, refuses: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self._refuses = refuses

    async def __call__(self, questions: list[int]) -> list[int]:
        self.batches.append(questions)
        await self.go.wait()
        for question in questions:
            if (error := self._refuses(question)) is not None:
                raise error
        return questions


def run(test: Awaitable[Any]) -> None:
    async def main() -> None:
        await test

    asyncio.run(main())


async def asked(gatherer: Gatherer[int, int], *questions: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(gatherer.ask(question)) for question in questions]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_the_first_goes_at_once_and_who_comes_meanwhile_goes_together() -> None:
    async def story() -> None:
        lane = Lane()
        gatherer = Gatherer([lane], lambda number: number)
        tasks = await asked(gatherer, 0)
        assert lane.batches == [[0]]
        tasks += await asked(gatherer, *range(1, 2 * MOST))
        lane.go.set()
        assert await asyncio.gather(*tasks) == list(range(2 * MOST))
        assert [len(batch) for batch in lane.batches] == [1, MOST, MOST - 1]
        assert await gatherer.ask(7) == 7

    run(story())


def test_two_of_a_name_never_travel_together_and_keep_their_order() -> None:
    async def story() -> None:
        lane = Lane()
        gatherer = Gatherer([lane], lambda number: number % 10)
        first = await asked(gatherer, 99)
        rest = await asked(gatherer, 1, 11, 2, 21, 3)
        lane.go.set()
        assert await asyncio.gather(*first, *rest) == [99, 1, 11, 2, 21, 3]
        assert lane.batches == [[99], [1, 2, 3], [11], [21]]

    run(story())


def test_lanes_work_side_by_side() -> None:
    async def story() -> None:
        lanes = [Lane(), Lane()]
        gatherer = Gatherer(lanes, lambda number: number)
        tasks = await asked(gatherer, 1)
        tasks += await asked(gatherer, 2)
        tasks += await asked(gatherer, 3)
        assert sorted(batch for lane in lanes for batch in lane.batches) == [[1], [2]]
        for lane in lanes:
            lane.go.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3]

    run(story())


def refused(state: type[psycopg.Error]) -> DBAPIError:
    return DBAPIError(None, None, state("no"))


def test_a_value_that_can_not_be_kept_is_refused_to_its_sender_alone() -> None:
    async def story() -> None:
        lane = Lane(lambda number: refused(psycopg.errors.UntranslatableCharacter) if number == 2 else None)
        gatherer = Gatherer([lane], lambda number: number)
        tasks = await asked(gatherer, 0)
        tasks += await asked(gatherer, 1, 2, 3)
        lane.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answers[0], answers[1], answers[3]] == [0, 1, 3]
        assert isinstance(answers[2], DBAPIError)

    run(story())


def test_a_database_that_is_away_is_so_for_all_of_a_batch_which_is_not_asked_again() -> None:
    async def story() -> None:
        gone = refused(psycopg.errors.AdminShutdown)
        lane = Lane(lambda number: gone if number else None)
        gatherer = Gatherer([lane], lambda number: number)
        tasks = await asked(gatherer, 0)
        tasks += await asked(gatherer, 1, 2)
        lane.go.set()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [0, gone, gone]
        assert lane.batches == [[0], [1, 2]]
        assert await gatherer.ask(0) == 0

    run(story())


def test_who_goes_away_takes_nobody_along() -> None:
    async def story() -> None:
        lane = Lane()
        gatherer = Gatherer([lane], lambda number: number)
        tasks = await asked(gatherer, 1)
        tasks += await asked(gatherer, 2, 3)
        tasks[0].cancel()
        tasks[1].cancel()
        lane.go.set()
        assert await tasks[2] == 3
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    run(story())
