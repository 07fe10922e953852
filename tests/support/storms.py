"""Many callers at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def storm(size: int, question: Callable[[], T]) -> list[T]:
    """What each of `size` threads was answered, all of them asking at once."""
    barrier = threading.Barrier(size)
    answers: list[T] = []

    def one() -> None:
        barrier.wait()
        answers.append(question())

    threads = [threading.Thread(target=one) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == size
    return answers
