"""Asking again where another transaction came between a statement's snapshot and its row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from onceonly_jobs.errors import Unavailable
from onceonly_jobs.store.statement import Operation, Statement

T = TypeVar("T")

MOST_QUESTIONS = 100


def until_settled(question: Callable[[], Statement[T | None]]) -> Operation[T]:
    """The first answer that is not None. Each repetition means that somebody else's transaction committed."""
    for _ in range(MOST_QUESTIONS):
        answer = yield from question()
        if answer is not None:
            return answer
    raise Unavailable("the key's row (it changes hands too fast)")
