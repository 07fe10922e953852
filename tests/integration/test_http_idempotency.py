"""The Idempotency-Key middlewares: real frameworks, a real server, one set of promises for all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from starlette.responses import StreamingResponse
from support import shop as shops
from support.shop import PATIENCE_S, Shop

from onceonly_jobs.client import OnceOnly
from onceonly_jobs.integrations.asgi import IdempotencyMiddleware
from onceonly_jobs.integrations.idempotency import Answer, Idempotency, Incoming, parsed_key
from onceonly_jobs.local.ports import free_port
from onceonly_jobs.testing import Clock

KEY = {"Idempotency-Key": '"k-1"'}
ASGI = {"starlette": shops.starlette_app, "django-async": shops.django_asgi_app}
WSGI = {"flask": shops.flask_app, "django": shops.django_wsgi_app}

Post = Callable[..., httpx.Response]
OpenShop = Callable[..., Post]


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.go_on.set()


@pytest.fixture(params=[*ASGI, *WSGI])
def open_shop(request: pytest.FixtureRequest, shop: Shop, onceonly_client: OnceOnly) -> Iterator[OpenShop]:
    """Makes the shop with options of the guard; gives what posts to it, from any thread."""
    with ExitStack() as running:

        def make(**options: Any) -> Post:
            options = {"client": onceonly_client, "max_response_bytes": 20_000, **options}
            if request.param in WSGI:
                wsgi = httpx.WSGITransport(WSGI[request.param](shop, **options), raise_app_exceptions=False)
                return partial(_sent, httpx.Client(transport=wsgi, base_url="http://shop").request)
            portal = running.enter_context(start_blocking_portal())
            asgi = httpx.ASGITransport(ASGI[request.param](shop, **options), raise_app_exceptions=False)
            http = httpx.AsyncClient(transport=asgi, base_url="http://shop")
            running.callback(partial(portal.call, options["client"].aclose))
            return partial(_sent, lambda *args, **sent: portal.call(partial(http.request, *args, **sent)))

        yield make


def _sent(
    request: Callable[..., httpx.Response],
    path: str = "/charges",
    method: str = "POST",
    body: Any = None,
    **headers: str,
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(method, path, content=json.dumps(body or {"amount": 5}), headers={**KEY, **named})


def _problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert (told["type"], told["status"]) == (f"urn:onceonly-jobs:idempotency:{kind}", status)
    return told


def test_a_repeat_gets_the_first_response(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop()
    first, repeat, bare = post(), post(), post(Idempotency_Key="k-1")
    assert (first.status_code, first.json()) == (201, {"charge": 1, "for": {"amount": 5}})
    assert "Idempotency-Replayed" not in first.headers
    assert first.headers["X-Trace"] == "1"
    for again in (repeat, bare):
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Location"] == "/charges/1"
        assert again.headers["Content-Type"] == "application/json"
        assert again.headers.get("Content-Length") in (None, str(len(first.content)))
        assert "X-Trace" not in again.headers  # not on the list
    assert shop.calls["/charges"] == 1
    assert post(Idempotency_Key="k-2").json()["charge"] == 2


def test_what_has_no_key_or_another_method_is_not_looked_at(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop(applies=lambda incoming: incoming.path != "/refused")
    for sent in ({"method": "GET"}, {"path": "/refused"}):
        assert [post(**sent).headers.get("Idempotency-Replayed") for _ in range(2)] == [None, None]
    assert (shop.calls["/charges"], shop.calls["/refused"]) == (2, 2)


def test_another_request_with_the_key_is_refused(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop()
    assert post().status_code == 201
    _problem(post(body={"amount": 6}), 422, "key-reused")
    _problem(post("/refused"), 422, "key-reused")
    _problem(post("/charges?to=me"), 422, "key-reused")
    _problem(post(method="PATCH"), 422, "key-reused")
    assert shop.calls == {"/charges": 1}


def test_each_caller_has_keys_of_their_own(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop()
    answers = [post(Authorization=f"Bearer {who}").json()["charge"] for who in ("a", "b", "a")]
    assert answers == [1, 2, 1]


def test_keys_can_be_required_and_have_a_form(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop(required=True, header="X-Request-Key")
    _problem(post(), 400, "key-missing")
    for wrong in ("", '"', "two words", '"a" b', "k" * 256, "a,b"):
        _problem(post(X_Request_Key=wrong), 400, "key-invalid")
    assert post(X_Request_Key="k" * 255).status_code == 201
    assert shop.calls == {"/charges": 1}


def test_of_ten_at_once_one_runs(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop()
    with ThreadPoolExecutor(10) as pool:
        ended = as_completed([pool.submit(post, "/slow") for _ in range(10)], PATIENCE_S)
        others = [next(ended).result() for _ in range(9)]
        shop.go_on.set()
        winner = next(ended).result()
    for other in others:
        assert int(other.headers["Retry-After"]) >= 1
        _problem(other, 409, "in-flight")
    assert (winner.status_code, winner.json()["charge"]) == (201, 1)
    assert (post("/slow").content, shop.calls["/slow"]) == (winner.content, 1)


@pytest.mark.parametrize(
    ("path", "status"), [("/flaky", 503), ("/breaking", 500), ("/limited", 429)], ids=str
)
def test_after_what_is_no_outcome_a_retry_runs(
    open_shop: OpenShop, shop: Shop, path: str, status: int
) -> None:
    post = open_shop()
    assert post(path).status_code == status
    assert [post(path).json()["charge"] for _ in range(2)] == [2, 2]
    assert shop.calls[path] == 2


def test_a_refusal_is_an_outcome_unless_it_is_said_not_to_be(open_shop: OpenShop, shop: Shop) -> None:
    post, lenient = open_shop(), open_shop(stored=range(200, 300), key_prefix="lenient")
    assert [post("/refused").text for _ in range(2)] == ["card declined", "card declined"]
    assert shop.calls["/refused"] == 1
    assert [lenient("/refused").status_code for _ in range(2)] == [402, 402]
    assert shop.calls["/refused"] == 3


def test_any_bytes_are_replayed(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop()
    first, repeat = post("/binary"), post("/binary")
    assert first.content == repeat.content == b"\x89PNG\x00\xff\x01"
    assert repeat.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("path", ["/large", "/stream"])
def test_a_response_that_is_not_kept_is_not_made_again(open_shop: OpenShop, shop: Shop, path: str) -> None:
    post = open_shop()
    whole = {"/large": b"x" * shops.LARGE, "/stream": b"data: 1\n\ndata: 2\n\n"}[path]
    first = post(path)
    assert (first.status_code, first.content) == (200, whole)
    assert _problem(post(path), 409, "response-not-kept")["original_status"] == 200
    assert shop.calls[path] == 1


def test_a_request_that_is_too_large_is_refused(open_shop: OpenShop, shop: Shop) -> None:
    post = open_shop(max_body_bytes=100)
    _problem(post(body="x" * 200), 413, "request-too-large")
    assert (post(body="x" * 50).status_code, shop.calls["/charges"]) == (201, 1)


def test_a_request_of_a_crashed_server_is_taken_over(
    open_shop: OpenShop, shop: Shop, onceonly_clock: Clock
) -> None:
    post = open_shop(ttl=30)
    with ThreadPoolExecutor(1) as pool:
        silent = pool.submit(post, "/slow")
        assert shop.entered.wait(PATIENCE_S)
        _problem(post("/slow"), 409, "in-flight")
        onceonly_clock.advance(31)
        assert post("/slow").json()["charge"] == 2
        shop.go_on.set()
        _problem(silent.result(), 409, "in-flight")  # what it did is not what is kept
    assert post("/slow").json()["charge"] == 2


def test_without_onceonly_requests_are_refused_unless_they_may_pass(open_shop: OpenShop, shop: Shop) -> None:
    nowhere = OnceOnly("key", f"http://127.0.0.1:{free_port()}", max_retries_429=0)
    closed, opened = open_shop(client=nowhere), open_shop(client=nowhere, fail_open=True)
    answer = closed()
    _problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert shop.calls["/charges"] == 0
    assert [opened().json()["charge"] for _ in range(2)] == [1, 2]


def test_a_refused_api_key_lets_nobody_pass(
    open_shop: OpenShop, shop: Shop, onceonly_client: OnceOnly
) -> None:
    post = open_shop(client=OnceOnly("wrong", onceonly_client.base_url), fail_open=True)
    _problem(post(), 503, "unavailable")
    assert shop.calls["/charges"] == 0


# The rules, without a framework


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ('"a b"', "a b"),
        (r'"a\"b\\"', 'a"b\\'),
        ('"a";v=1', "a"),
        (" a ", "a"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ('"ä"', None),
        ('""', None),
        ('"a', None),
        (r'"a\n"', None),
        ("a;b", None),
    ],
)
def test_a_key_is_a_structured_string_or_a_word(given: str, key: str | None) -> None:
    assert parsed_key(given) == key


def _incoming(body: bytes = b"1") -> Incoming:
    return Incoming("POST", "/\0ü", "", {}, None, body)


def test_a_response_that_the_server_refuses_is_still_an_outcome(onceonly_client: OnceOnly) -> None:
    """One that is larger, as JSON, than the server keeps."""
    rules = Idempotency(client=onceonly_client, max_response_bytes=2_000_000)
    run = onceonly_client.driver.run
    lease: Any = run(rules.admit(_incoming(), "k"))
    whole = Answer(200, (), b"x" * 1_500_000)
    assert run(rules.keep(lease, whole)) is whole
    replayed: Any = run(rules.admit(_incoming(), "k"))
    assert (replayed.status, json.loads(replayed.body)["original_status"]) == (409, 200)


def test_a_response_that_can_not_be_stored_is_sent_and_its_key_stays_taken(
    onceonly_client: OnceOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Idempotency(client=onceonly_client)
    lease: Any = onceonly_client.driver.run(rules.admit(_incoming(), "k"))
    monkeypatch.setattr("onceonly_jobs.integrations.idempotency.STORE_FOR_S", 0)
    nowhere = OnceOnly("key", f"http://127.0.0.1:{free_port()}", max_retries_429=0)
    given = Answer(201, (), b"made")
    assert nowhere.driver.run(Idempotency(client=nowhere).keep(lease, given)) is given
    told: Any = onceonly_client.driver.run(rules.admit(_incoming(), "k"))
    assert json.loads(told.body)["type"].endswith("in-flight")


def test_a_caller_that_leaves_finds_the_response_later(onceonly_client: OnceOnly) -> None:
    """Starlette ends a stream whose caller is gone; what is to be kept is made nevertheless."""
    made: list[bytes] = []

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"paid ", b"in full"):
            await asyncio.sleep(0.01)
            made.append(part)
            yield part

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(parts())(scope, receive, send)

    async def ask() -> list[Any]:
        """Its caller leaves as soon as it has sent the request."""
        received = iter([{"type": "http.request", "body": b"", "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(received, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": "/",
            "headers": [(b"idempotency-key", b"k")],
        }
        await IdempotencyMiddleware(app, client=onceonly_client)(scope, receive, send)
        return sent

    async def twice() -> list[Any]:
        await ask()
        start, body = await ask()
        await onceonly_client.aclose()
        return [dict(start["headers"]).get(b"idempotency-replayed"), body["body"]]

    assert asyncio.run(twice()) == [b"true", b"paid in full"]
    assert made == [b"paid ", b"in full"]
