"""`@once` on a user's own Celery tasks: a real worker, a real broker, a real server."""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import Callable, Iterator

import pytest
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult
from support.celery_shop import CeleryShop, Declined

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.client.exceptions import RunFailed, StillRunning, Unreachable
from onceonly_jobs.integrations import celery as integration
from onceonly_jobs.local.fresh_system import FreshSystem
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.testing import Clock

PATIENCE_S = 30.0


@pytest.fixture
def shop(onceonly_client: OnceOnly) -> Iterator[CeleryShop]:
    """Called by hand, without a worker."""
    shop = CeleryShop(onceonly_client)
    yield shop
    shop.go_on.set()


@pytest.fixture
def working(
    onceonly_client: OnceOnly, onceonly_system: FreshSystem, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CeleryShop]:
    """With a worker of two threads, whose deliveries come again soon."""
    monkeypatch.setattr(integration, "AGAIN_AFTER_S", 0.1)
    monkeypatch.setattr(integration, "LONGEST_AGAIN_S", 0.1)
    queue = f"shop-{uuid.uuid4().hex}"
    shop = CeleryShop(
        onceonly_client,
        broker_url=onceonly_system.broker_url,
        result_backend=onceonly_system.broker_url,
        task_default_queue=queue,
        worker_hijack_root_logger=False,
    )
    with start_worker(
        shop.app,
        pool="threads",
        concurrency=2,
        perform_ping_check=False,
        shutdown_timeout=30,
        loglevel=logging.WARNING,  # stays the level of this whole process
    ):
        yield shop
        shop.go_on.set()


def _got(result: AsyncResult) -> object:
    return result.get(timeout=PATIENCE_S)


def test_a_task_keeps_its_name_its_signature_and_its_text(shop: CeleryShop) -> None:
    assert shop.charge.name == "shop.charge"
    assert shop.automatic.name.endswith("celery_shop.automatic")
    assert shop.charge.__doc__ == "Charge an order, after failing so many times."
    assert list(inspect.signature(shop.charge.run).parameters) == ["order", "fail"]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        shop.charge.delay()


def test_calls_by_hand_get_the_result_as_its_type(shop: CeleryShop) -> None:
    first, repeat = shop.charge("a"), shop.charge(order="a")
    assert first == repeat
    assert type(repeat) is type(first)
    assert shop.calls["a"] == 1
    assert (shop.persistent("b"), shop.persistent(order="b"), shop.persistent("c")) == (1, 1, 1)
    assert shop.calls == {"a": 1, "b": 1, "c": 1}


def test_an_exception_is_kept_or_lets_the_next_one_try(shop: CeleryShop) -> None:
    with pytest.raises(Declined):
        shop.charge("a", fail=1)
    with pytest.raises(RunFailed, match="task_error"):
        shop.charge("a", fail=1)
    with pytest.raises(Declined):
        shop.releasing("b", fail=1)
    assert shop.releasing("b", fail=1) == 2
    assert shop.calls == {"a": 1, "b": 2}


def test_an_eager_repeat_in_flight_does_not_go_round_in_circles(
    shop: CeleryShop, onceonly_client: OnceOnly
) -> None:
    onceonly_client.ai.lease("charge:a", 30)
    for call in (lambda: shop.charge("a"), lambda: shop.charge.apply(("a",), throw=True)):
        with pytest.raises(StillRunning) as caught:
            call()
        assert caught.value.key == "charge:a"
    assert shop.calls["a"] == 0


def test_without_onceonly_a_call_by_hand_raises() -> None:
    shop = CeleryShop(OnceOnly("key", f"http://127.0.0.1:{free_port()}", max_retries_429=0))
    with pytest.raises(Unreachable):
        shop.charge("a")
    assert shop.calls["a"] == 0


def test_coroutines_are_no_tasks(onceonly_client: OnceOnly) -> None:
    async def task() -> None: ...

    with pytest.raises(TypeError, match="plain functions"):
        integration.once(onceonly_client)(task)


def test_a_duplicate_delivery_waits_for_the_one_at_work(working: CeleryShop) -> None:
    working.held = "a"
    first = working.automatic.delay("a")
    assert working.entered.wait(PATIENCE_S)
    second = working.automatic.delay("a")
    ignored = working.releasing.delay("other")
    assert _got(ignored) == 1  # the second one has let go of its thread
    with pytest.raises(CeleryTimeout):
        second.get(timeout=0.3)
    working.go_on.set()
    assert (_got(first), _got(second)) == (1, 1)
    assert working.calls == {"a": 1, "other": 1}
    assert second.status == "SUCCESS"


def test_a_duplicate_delivery_can_be_dropped(working: CeleryShop) -> None:
    working.held = "a"
    first = working.releasing.delay("a")
    assert working.entered.wait(PATIENCE_S)
    second = working.releasing.delay("a")
    assert _got(working.releasing.delay("after")) == 1
    working.go_on.set()
    assert _got(first) == 1
    assert second.status == "PENDING"
    assert working.calls == {"a": 1, "after": 1}


@pytest.mark.parametrize("task", ["persistent", "automatic"])
def test_retries_of_celery_run(working: CeleryShop, task: str) -> None:
    send: Callable[..., AsyncResult] = getattr(working, task).delay
    assert _got(send("a", fail=1)) == 2
    assert _got(send("a", fail=1)) == 2
    assert working.calls["a"] == 2


def test_a_task_that_has_used_up_its_retries_has_failed(working: CeleryShop) -> None:
    with pytest.raises(Declined):
        _got(working.persistent.delay("a", fail=9))
    assert working.calls["a"] == 3
    with pytest.raises(RunFailed):
        _got(working.persistent.delay("a", fail=9))
    assert working.calls["a"] == 3


def test_a_dead_workers_task_is_taken_over(
    working: CeleryShop, onceonly_client: OnceOnly, onceonly_clock: Clock
) -> None:
    """Its lease runs out, and the redelivered message comes again until then."""
    assert onceonly_client.ai.lease("auto:a", 30)["status"] == "acquired"
    redelivered = working.automatic.delay("a")
    with pytest.raises(CeleryTimeout):
        redelivered.get(timeout=0.3)
    assert working.calls["a"] == 0
    onceonly_clock.advance(31)
    assert _got(redelivered) == 1


def test_a_worker_that_was_overtaken_gives_what_is_stored(
    working: CeleryShop, onceonly_client: OnceOnly, onceonly_clock: Clock
) -> None:
    working.held = "a"
    slow = working.automatic.delay("a")
    assert working.entered.wait(PATIENCE_S)
    onceonly_clock.advance(301)
    lease = onceonly_client.ai.lease("auto:a", 30)
    onceonly_client.ai.complete("auto:a", lease["lease_id"], result={"value": 7, "wrapped": True})
    working.go_on.set()
    assert _got(slow) == 7
