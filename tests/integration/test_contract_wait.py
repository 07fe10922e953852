"""`wait=` on status and result: pushed by a hint, with a re-read of Postgres behind it (additive)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from onceonly_jobs.api import waiting
from onceonly_jobs.contracts.leases import CompleteRequest
from onceonly_jobs.services import leases

if TYPE_CHECKING:
    import httpx

    from tests.integration.conftest import Api

READERS = ["/ai/status", "/ai/result"]
PROMPT_S = 5.0
"""Generous for a busy machine, and far below every wait that must not be sat out."""


@pytest.fixture
def no_reread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a hint can answer before the time is over."""
    monkeypatch.setattr(waiting, "REREAD_S", 3600.0)


def wait_until_subscribed(api: Api) -> None:
    listener = api.app.asgi.state.onceonly.hints
    deadline = time.monotonic() + 10
    while not listener.connected.is_set():
        assert time.monotonic() < deadline, "the subscription never stood"
        time.sleep(0.01)


def held(api: Api, key: str = "k") -> str:
    lease_id: str = api.post("/ai/lease", key=key).json()["lease_id"]
    return lease_id


class Waiter:
    """A long poll in a thread of its own."""

    def __init__(self, api: Api, path: str, **params: object) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.sent_at = time.monotonic()
        self._answer: Future[httpx.Response] = self._pool.submit(lambda: api.get(path, **params))

    def is_waiting(self) -> bool:
        time.sleep(0.15)
        return not self._answer.done()

    def answer(self) -> httpx.Response:
        try:
            return self._answer.result(60)
        finally:
            self._pool.shutdown()


@pytest.mark.usefixtures("no_reread")
@pytest.mark.parametrize("path", READERS)
@pytest.mark.parametrize(
    ("finish", "extra", "status"),
    [
        ("/ai/complete", {"result": {"n": 1}}, "completed"),
        ("/ai/fail", {"error_code": "e"}, "failed"),
        ("/ai/cancel", {}, "failed"),
    ],
)
def test_a_waiter_is_answered_promptly_when_another_caller_finishes(
    api: Api, path: str, finish: str, extra: dict[str, object], status: str
) -> None:
    wait_until_subscribed(api)
    lease_id = held(api)
    waiter = Waiter(api, path, key="k", wait=25)
    assert waiter.is_waiting()
    finished_at = time.monotonic()
    api.post(finish, key="k", lease_id=lease_id, **extra)
    answer = waiter.answer()
    assert time.monotonic() - finished_at < PROMPT_S
    assert (answer.status_code, answer.json()["status"]) == (200, status)
    assert answer.json() == api.get(path, key="k").json()


@pytest.mark.usefixtures("no_reread")
def test_every_waiter_is_answered(api: Api) -> None:
    wait_until_subscribed(api)
    lease_id = held(api)
    waiters = [Waiter(api, READERS[n % 2], key="k", wait=25) for n in range(20)]
    assert waiters[-1].is_waiting()
    finished_at = time.monotonic()
    api.post("/ai/complete", key="k", lease_id=lease_id)
    assert {waiter.answer().json()["status"] for waiter in waiters} == {"completed"}
    assert time.monotonic() - finished_at < PROMPT_S


@pytest.mark.usefixtures("no_reread")
def test_a_waiter_wakes_up_in_another_process_than_the_one_that_finished(serve: Callable[..., Api]) -> None:
    """Two applications that share nothing but Postgres and Redis."""
    waited_on, finishing = serve(), serve()
    wait_until_subscribed(waited_on)
    lease_id = held(waited_on)
    waiter = Waiter(waited_on, "/ai/result", key="k", wait=25)
    assert waiter.is_waiting()
    finished_at = time.monotonic()
    finishing.app.request(
        "POST",
        "/v1/ai/complete",
        json={"key": "k", "lease_id": lease_id, "result": {}},
        headers={"Authorization": f"Bearer {waited_on.api_key}"},
    )
    assert waiter.answer().json()["status"] == "completed"
    assert time.monotonic() - finished_at < PROMPT_S


def complete_silently(api: Api, lease_id: str) -> None:
    """Complete in the database only: the hint is lost."""
    api.db.run(leases.complete, api.caller, CompleteRequest(key="k", lease_id=lease_id), 600)


@pytest.mark.parametrize("path", READERS)
def test_a_lost_hint_costs_a_moment_and_not_the_answer(api: Api, path: str) -> None:
    lease_id = held(api)
    waiter = Waiter(api, path, key="k", wait=25)
    assert waiter.is_waiting()
    finished_at = time.monotonic()
    complete_silently(api, lease_id)
    assert waiter.answer().json()["status"] == "completed"
    assert time.monotonic() - finished_at < PROMPT_S


def test_without_redis_waiters_are_answered_by_rereading(serve: Callable[..., Api]) -> None:
    api = serve(broker_url="amqp://guest@127.0.0.1:1//")
    assert api.app.settings.hints_url is None
    lease_id = held(api)
    waiter = Waiter(api, "/ai/result", key="k", wait=25)
    assert waiter.is_waiting()
    finished_at = time.monotonic()
    complete_silently(api, lease_id)
    assert waiter.answer().json()["status"] == "completed"
    assert time.monotonic() - finished_at < PROMPT_S


@pytest.mark.parametrize("path", READERS)
def test_at_the_end_of_the_wait_the_state_is_answered_as_it_is(api: Api, path: str) -> None:
    held(api)
    started = time.monotonic()
    answer = api.get(path, key="k", wait=0.4)
    assert 0.4 <= time.monotonic() - started < PROMPT_S
    assert (answer.status_code, answer.json()["status"]) == (200, "in_progress")


def test_a_wait_is_clamped_to_the_servers_limit(serve: Callable[..., Api]) -> None:
    api = serve(max_wait_s=0.3)
    held(api)
    for path in READERS:
        started = time.monotonic()
        assert api.get(path, key="k", wait=20).json()["status"] == "in_progress"
        assert 0.3 <= time.monotonic() - started < PROMPT_S


@pytest.mark.parametrize("path", READERS)
def test_without_wait_or_with_0_nobody_waits(api: Api, path: str) -> None:
    held(api)
    started = time.monotonic()
    for params in ({}, {"wait": 0}, {"wait": "0.0"}):
        assert api.get(path, key="k", **params).json()["status"] == "in_progress"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("path", READERS)
def test_a_finished_run_and_an_unknown_key_are_answered_at_once(api: Api, path: str) -> None:
    lease_id = held(api)
    api.post("/ai/complete", key="k", lease_id=lease_id)
    started = time.monotonic()
    assert api.get(path, key="k", wait=25).json()["status"] == "completed"
    assert api.get(path, key="nosuch", wait=25).status_code == 404
    assert time.monotonic() - started < PROMPT_S


@pytest.mark.parametrize("wait", ["-1", "-0.001", "nan", "inf", "-inf", "1e400", "3601", "soon", "", "1,5"])
def test_a_wait_that_is_no_duration_is_invalid(api: Api, wait: str) -> None:
    held(api)
    answer = api.get("/ai/status", key="k", wait=wait)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "wait"]


def test_waiters_hold_no_database_connection(serve: Callable[..., Api]) -> None:
    api = serve(database_pool_size=2)
    held(api)
    started = threading.Barrier(13, timeout=30)

    def wait(_: int) -> str:
        started.wait()
        return str(api.get("/ai/status", key="k", wait=2).json()["status"])

    with ThreadPoolExecutor(12) as pool:
        waiting_ones = pool.map(wait, range(12))
        started.wait()
        time.sleep(0.2)
        asked = time.monotonic()
        assert api.get("/me").status_code == 200
        assert time.monotonic() - asked < 1
        assert set(waiting_ones) == {"in_progress"}


@pytest.mark.parametrize("path", READERS)
def test_a_process_that_ends_answers_its_waiters_as_things_stand(
    serve: Callable[..., Api], path: str
) -> None:
    """They ask again, of another one, instead of holding up its end until they are cut off."""
    api = serve()
    held(api)
    waiter = Waiter(api, path, key="k", wait=28)
    assert waiter.is_waiting()
    api.app.asgi.state.onceonly.streams.end()
    assert waiter.answer().json()["status"] == "in_progress"
    assert time.monotonic() - waiter.sent_at < 20
