"""A database that was silent is left alone for a moment, and found again by one caller."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from onceonly_jobs.store.silence import REST_S, SLOW_S, Breaker


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refuses(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except sa.exc.TimeoutError:
        return True
    return False


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time: Time) -> Breaker:
    return Breaker(time)


def test_a_failure_that_cost_nobody_time_refuses_nobody(breaker: Breaker) -> None:
    """A port that is closed says so at once: then every caller may find out that it is open again."""
    breaker.failed(took_s=SLOW_S / 2)
    assert not refuses(breaker)


def test_after_a_slow_one_callers_are_refused_at_once(breaker: Breaker, time: Time) -> None:
    breaker.failed(took_s=SLOW_S)
    assert [refuses(breaker) for _ in range(3)] == [True] * 3
    time.now += REST_S / 2
    assert refuses(breaker)


def test_one_caller_at_a_time_finds_out(breaker: Breaker, time: Time) -> None:
    breaker.failed(took_s=SLOW_S)
    for _ in range(3):
        time.now += REST_S
        assert [refuses(breaker) for _ in range(3)] == [False, True, True]


def test_an_answer_lets_everybody_in(breaker: Breaker, time: Time) -> None:
    breaker.failed(took_s=SLOW_S)
    time.now += REST_S
    assert not refuses(breaker)
    breaker.answered()
    assert [refuses(breaker) for _ in range(3)] == [False] * 3
