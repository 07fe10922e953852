"""`wait=` on status and result: pushed by a hint, with a re-read of Postgres behind it (additive)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from onceonly_jobs.api import waiting
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.leases import CompleteRequest
from onceonly_jobs.dispatch.hints import HintListener
from onceonly_jobs.services import leases
from onceonly_jobs.store.database import Database
from tests.integration.conftest import App

if TYPE_CHECKING:
    import httpx

    from tests.integration.conftest import Api, NewApi

READERS = ["/ai/status", "/ai/result"]
PATIENCE_S = 60.0
WAIT_S = 100.0
"""A wait that is sat out is longer than a waiter's answer is waited for, and shorter than a test may take."""


@pytest.fixture(scope="module")
def app(shared_settings: Settings) -> Iterator[App]:
    with App(shared_settings.model_copy(update={"max_wait_s": WAIT_S})) as app:
        yield app


@pytest.fixture
def api(app: App, shared_db: Database, tenant_on: NewApi) -> Api:
    return tenant_on(app, shared_db)


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to wait is answered 500."""
    monkeypatch.setattr(HintListener, "waiting", None)


@pytest.fixture
def no_reread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a hint can answer before the time is over."""
    monkeypatch.setattr(waiting, "REREAD_S", 3600.0)


def wait_until_subscribed(api: Api) -> None:
    listener = api.app.asgi.state.onceonly.hints
    deadline = time.monotonic() + PATIENCE_S
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
        self._answer: Future[httpx.Response] = self._pool.submit(lambda: api.get(path, **params))

    def is_waiting(self) -> bool:
        time.sleep(0.15)
        return not self._answer.done()

    def answer(self) -> httpx.Response:
        try:
            return self._answer.result(PATIENCE_S)
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
    waiter = Waiter(api, path, key="k", wait=WAIT_S)
    assert waiter.is_waiting()
    api.post(finish, key="k", lease_id=lease_id, **extra)
    answer = waiter.answer()
    assert (answer.status_code, answer.json()["status"]) == (200, status)
    assert answer.json() == api.get(path, key="k").json()


@pytest.mark.usefixtures("no_reread")
def test_every_waiter_is_answered(api: Api) -> None:
    wait_until_subscribed(api)
    lease_id = held(api)
    waiters = [Waiter(api, READERS[n % 2], key="k", wait=WAIT_S) for n in range(20)]
    assert waiters[-1].is_waiting()
    api.post("/ai/complete", key="k", lease_id=lease_id)
    assert {waiter.answer().json()["status"] for waiter in waiters} == {"completed"}


@pytest.mark.usefixtures("no_reread")
def test_a_waiter_wakes_up_in_another_process_than_the_one_that_finished(serve: Callable[..., Api]) -> None:
    """Two applications that share nothing but Postgres and Redis."""
    waited_on, finishing = serve(max_wait_s=WAIT_S), serve()
    wait_until_subscribed(waited_on)
    lease_id = held(waited_on)
    waiter = Waiter(waited_on, "/ai/result", key="k", wait=WAIT_S)
    assert waiter.is_waiting()
    finishing.app.request(
        "POST",
        "/v1/ai/complete",
        json={"key": "k", "lease_id": lease_id, "result": {}},
        headers={"Authorization": f"Bearer {waited_on.api_key}"},
    )
    assert waiter.answer().json()["status"] == "completed"


def complete_silently(api: Api, lease_id: str) -> None:
    """Complete in the database only: the hint is lost."""
    api.db.run(leases.complete, api.caller, CompleteRequest(key="k", lease_id=lease_id), 600)


@pytest.mark.parametrize("path", READERS)
def test_a_lost_hint_costs_a_moment_and_not_the_answer(api: Api, path: str) -> None:
    lease_id = held(api)
    waiter = Waiter(api, path, key="k", wait=WAIT_S)
    assert waiter.is_waiting()
    complete_silently(api, lease_id)
    assert waiter.answer().json()["status"] == "completed"


def test_without_redis_waiters_are_answered_by_rereading(serve: Callable[..., Api]) -> None:
    api = serve(broker_url="amqp://guest@127.0.0.1:1//", max_wait_s=WAIT_S)
    assert api.app.settings.hints_url is None
    lease_id = held(api)
    waiter = Waiter(api, "/ai/result", key="k", wait=WAIT_S)
    assert waiter.is_waiting()
    complete_silently(api, lease_id)
    assert waiter.answer().json()["status"] == "completed"


@pytest.mark.parametrize("path", READERS)
def test_at_the_end_of_the_wait_the_state_is_answered_as_it_is(api: Api, path: str) -> None:
    held(api)
    started = time.monotonic()
    answer = Waiter(api, path, key="k", wait=0.4).answer()
    assert time.monotonic() - started >= 0.4
    assert (answer.status_code, answer.json()["status"]) == (200, "in_progress")


def test_a_wait_is_clamped_to_the_servers_limit(serve: Callable[..., Api]) -> None:
    api = serve(max_wait_s=0.3)
    held(api)
    for path in READERS:
        started = time.monotonic()
        assert Waiter(api, path, key="k", wait=WAIT_S).answer().json()["status"] == "in_progress"
        assert time.monotonic() - started >= 0.3


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("path", READERS)
def test_without_wait_or_with_0_nobody_waits(api: Api, path: str) -> None:
    held(api)
    for params in ({}, {"wait": 0}, {"wait": "0.0"}):
        assert api.get(path, key="k", **params).json()["status"] == "in_progress"


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize("path", READERS)
def test_a_finished_run_and_an_unknown_key_are_answered_at_once(api: Api, path: str) -> None:
    lease_id = held(api)
    api.post("/ai/complete", key="k", lease_id=lease_id)
    assert api.get(path, key="k", wait=WAIT_S).json()["status"] == "completed"
    assert api.get(path, key="nosuch", wait=WAIT_S).status_code == 404


@pytest.mark.parametrize("wait", ["-1", "-0.001", "nan", "inf", "-inf", "1e400", "3601", "soon", "", "1,5"])
def test_a_wait_that_is_no_duration_is_invalid(api: Api, wait: str) -> None:
    held(api)
    answer = api.get("/ai/status", key="k", wait=wait)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "wait"]


def test_waiters_hold_no_database_connection(serve: Callable[..., Api]) -> None:
    api = serve(database_pool_size=2, max_wait_s=WAIT_S)
    lease_id = held(api)
    waiters = [Waiter(api, "/ai/status", key="k", wait=WAIT_S) for _ in range(12)]
    woken = api.app.asgi.state.onceonly.hints._waiting
    deadline = time.monotonic() + PATIENCE_S
    while len(woken.get((api.tenant_id, "k"), ())) < len(waiters):
        assert time.monotonic() < deadline, "they never waited all at once"
        time.sleep(0.01)
    assert api.get("/me").status_code == 200
    api.post("/ai/complete", key="k", lease_id=lease_id)
    assert {waiter.answer().json()["status"] for waiter in waiters} == {"completed"}


@pytest.mark.parametrize("path", READERS)
def test_a_process_that_ends_answers_its_waiters_as_things_stand(
    serve: Callable[..., Api], path: str
) -> None:
    """They ask again, of another one, instead of holding up its end until they are cut off."""
    api = serve(max_wait_s=WAIT_S)
    held(api)
    waiter = Waiter(api, path, key="k", wait=WAIT_S)
    assert waiter.is_waiting()
    api.app.asgi.state.onceonly.streams.end()
    assert waiter.answer().json()["status"] == "in_progress"
