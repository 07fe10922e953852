"""An interruption reaches the handler or nothing: never what comes after it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from onceonly_jobs.worker.interrupt import Interrupt, Interrupted, Reason, within

Runner = Callable[[Callable[[], Any]], Any]


def in_this_thread(work: Callable[[], Any]) -> Any:
    return work()


def in_another_thread(work: Callable[[], Any]) -> Any:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


everywhere = pytest.mark.parametrize("run", [in_this_thread, in_another_thread])


def fired_after(interrupt: Interrupt, delay_s: float) -> threading.Thread:
    def fire() -> None:
        time.sleep(delay_s)
        interrupt.fire(Reason.OVERDUE)

    thread = threading.Thread(target=fire)
    thread.start()
    return thread


def busy(_: None) -> None:
    while True:
        time.sleep(0.001)


async def busy_async(_: None) -> None:
    await asyncio.sleep(60)


def stubborn(_: None) -> str:
    try:
        busy(None)
    except BaseException:
        return "finished anyway"
    return "never"


async def stubborn_async(_: None) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "finished anyway"
    return "never"


@everywhere
@pytest.mark.parametrize("handler", [busy, busy_async, stubborn, stubborn_async])
def test_a_handler_is_interrupted(run: Runner, handler: Callable[[None], Any]) -> None:
    interrupt = Interrupt()
    thread = fired_after(interrupt, 0.05)
    with pytest.raises(Interrupted) as raised:
        run(lambda: interrupt.call(handler, None))
    thread.join()
    assert raised.value.reason is Reason.OVERDUE


def test_a_blocking_call_in_the_main_thread_is_interrupted() -> None:
    interrupt, slept = Interrupt(), []
    fired_after(interrupt, 0.05)
    with pytest.raises(Interrupted):
        interrupt.call(lambda _: slept.append(time.sleep(60)), None)
    assert slept == []


@everywhere
def test_one_that_was_fired_before_the_call_ends_it_at_once(run: Runner) -> None:
    interrupt = Interrupt()
    assert interrupt.fire(Reason.CANCELLED)
    with pytest.raises(Interrupted) as raised:
        run(lambda: interrupt.call(busy, None))
    assert raised.value.reason is Reason.CANCELLED


def quick(_: None) -> str:
    return "done"


async def quick_async(_: None) -> str:
    return "done"


def failing(_: None) -> None:
    raise ValueError("own")


@everywhere
@pytest.mark.parametrize("handler", [quick, quick_async, failing])
def test_one_that_comes_too_late_hits_nothing(run: Runner, handler: Callable[[None], Any]) -> None:
    """Whenever it is fired, the call ends in one of two ways, and what follows runs undisturbed."""

    def once(delay_s: float) -> bool:
        interrupt = Interrupt()
        thread = fired_after(interrupt, delay_s)
        try:
            interrupt.call(handler, None)
        except Interrupted:
            hit = True
        except ValueError:
            hit = False
        else:
            hit = False
        sum(range(20_000))  # here a stray exception would show
        thread.join()
        sum(range(20_000))
        assert hit == (interrupt.reason is not None)
        return hit

    def many() -> None:
        for number in range(300):
            once((number % 30) * 20e-6)

    run(many)


def test_what_the_process_is_told_is_passed_on() -> None:
    def exits(_: None) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Interrupt().call(exits, None)


def test_only_a_running_handler_is_acted_upon() -> None:
    interrupt, acted = Interrupt(), []
    interrupt.call(lambda _: interrupt.unless_over(lambda: acted.append("running")), None)
    interrupt.unless_over(lambda: acted.append("over"))
    assert acted == ["running"]
    assert not interrupt.fire(Reason.OVERDUE)


# A run within a run


@everywhere
def test_what_stops_a_handler_stops_the_run_within_it_and_lets_that_be_recorded(
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    outer, seen, threads = Interrupt(), [], []

    def handler(_: None) -> None:
        with outer.lent() as inner:
            threads.append(fired_after(outer, 0.05))
            try:
                inner.call(busy, None)
            except Interrupted as stop:
                seen.append(stop.reason)
            time.sleep(0.05)
            seen.append("recorded")
        seen.append("went on")

    with pytest.raises(Interrupted) as stopped:
        run(lambda: outer.call(handler, None))
    threads[0].join()
    assert stopped.value.reason is Reason.OVERDUE
    assert seen == [Reason.LOST, "recorded"]


@everywhere
def test_an_interruption_while_the_inner_run_is_recorded_waits_for_that(
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    outer, seen = Interrupt(), []

    def handler(_: None) -> None:
        with outer.lent() as inner:
            assert inner.call(lambda _: "done", None) == "done"
            outer.fire(Reason.CANCELLED)
            time.sleep(0.05)
            seen.append("recorded")
        seen.append("went on")

    with pytest.raises(Interrupted):
        run(lambda: outer.call(handler, None))
    assert seen == ["recorded"]


@everywhere
def test_a_handler_can_be_interrupted_after_the_run_within_it(
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    outer = Interrupt()

    def handler(_: None) -> None:
        with outer.lent() as inner:
            inner.call(lambda _: None, None)
        busy(None)

    thread = fired_after(outer, 0.05)
    with pytest.raises(Interrupted):
        run(lambda: outer.call(handler, None))
    thread.join()


@everywhere
def test_an_inner_run_that_has_to_stop_does_not_stop_the_handler(
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    outer = Interrupt()

    def handler(_: None) -> str:
        with outer.lent() as inner:
            thread = fired_after(inner, 0.05)
            with pytest.raises(Interrupted):
                inner.call(busy, None)
            thread.join()
        return "went on"

    assert run(lambda: outer.call(handler, None)) == "went on"


def test_an_interrupted_call_of_logging_leaves_nothing_locked() -> None:
    """As it would where the interruption comes between a handler's `acquire` and its `try`."""
    handler, interrupt = logging.StreamHandler(io.StringIO()), Interrupt()

    def logs(_: None) -> None:
        handler.acquire()
        busy(None)

    firing = fired_after(interrupt, 0.1)
    with pytest.raises(Interrupted):
        interrupt.call(logs, None)
    firing.join()
    assert in_another_thread(lambda: handler.lock.acquire(blocking=False))


def deaf_until(heard: threading.Event) -> str:
    while not heard.is_set():
        with contextlib.suppress(Interrupted):
            time.sleep(0.01)
    return "came too late"


@pytest.mark.parametrize(("time_s", "ending", "reason"), [(0, False, "overdue"), (60, True, "stopping")])
def test_what_takes_too_long_is_interrupted_and_then_given_up(
    time_s: float, ending: bool, reason: str
) -> None:
    heard = threading.Event()
    with pytest.raises(Interrupted, match=reason):
        within(
            time_s,
            lambda: deaf_until(heard),
            told_to_end=lambda: ending,
            grace_s=0,
            give_up=heard.set,
        )


def test_what_ends_in_time_is_left_alone() -> None:
    said = within(60, lambda: "said", told_to_end=lambda: False, grace_s=0, give_up=pytest.fail)
    assert said == "said"
