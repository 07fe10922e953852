"""Headers of requests and answers (§1.1, §1.3, §1.4)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import account

if TYPE_CHECKING:
    import httpx

    from tests.integration.conftest import Api, NewApi

Asking = Callable[["Api", dict[str, str]], "httpx.Response"]


def asks(method: str, path: str, **sent: Any) -> Asking:
    return lambda api, headers: api.request(method, path, headers=headers, **sent)


WITHOUT_KEY: dict[str, Asking] = {
    "200 health": lambda api, headers: api.app.request("GET", "/health", headers=headers),
    "200 docs": lambda api, headers: api.app.request("GET", "/docs", headers=headers),
    "401 missing": lambda api, headers: api.app.request("GET", "/v1/me", headers=headers),
    "401 invalid": lambda api, headers: api.app.request(
        "GET", "/v1/me", headers=headers | {"Authorization": "Bearer once_live_x"}
    ),
    "404 route": asks("GET", "/nosuch"),
    "405 method": asks("DELETE", "/me"),
}
WITH_KEY: dict[str, Asking] = {
    "200 check-lock": asks("POST", "/check-lock", json={"key": "new"}),
    "200 lease": asks("POST", "/ai/lease", json={"key": "new"}),
    "200 run": asks("POST", "/ai/run", json={"key": "new"}),
    "200 me": asks("GET", "/me"),
    "200 usage": asks("GET", "/usage"),
    "200 usage/all": asks("GET", "/usage/all"),
    "200 event": asks("POST", "/events", json={"run_id": "r", "type": "t"}),
    "200 runs": asks("GET", "/runs/r"),
    "400 task": asks("POST", "/ai/run", json={"key": "k", "metadata": {"task": "nosuch"}}),
    "404 key": asks("GET", "/ai/status?key=nosuch"),
    "409 conflict": asks("POST", "/ai/complete", json={"key": "held", "lease_id": "x"}),
    "413 body": asks("POST", "/check-lock", content=b" " * 3_000_000),
    "422 body": asks("POST", "/check-lock", content=b"{"),
    "422 field": asks("POST", "/check-lock", json={}),
}


@pytest.mark.parametrize("case", [*WITHOUT_KEY, *WITH_KEY])
def test_every_answer_carries_the_request_id_that_was_sent_or_a_new_one(api: Api, case: str) -> None:
    api.post("/ai/lease", key="held")
    ask = (WITHOUT_KEY | WITH_KEY)[case]
    answer = ask(api, {"X-Request-Id": "trace-7f/"})
    assert str(answer.status_code) == case[:3]
    assert answer.headers["X-Request-Id"] == "trace-7f/"
    first, second = (ask(api, {}).headers["X-Request-Id"] for _ in range(2))
    assert first != second
    assert min(len(first), len(second)) >= 16


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"caf\xe9", b"a\x00b", b"a\x1b[31m", b"two words"])
def test_a_request_id_that_is_not_plain_visible_ascii_is_replaced(api: Api, sent: bytes) -> None:
    answer = api.request("POST", "/check-lock", json={"key": "k"}, headers={"X-Request-Id": sent})
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"].startswith("req_")


@pytest.mark.parametrize("case", WITH_KEY)
def test_every_answer_to_a_valid_key_names_the_plan(new_tenant: NewApi, case: str) -> None:
    """§1.4"""
    api = new_tenant(Plan.PRO)
    api.post("/ai/lease", key="held")
    assert WITH_KEY[case](api, {}).headers["X-OnceOnly-Plan"] == "pro"


@pytest.mark.parametrize("case", WITHOUT_KEY)
def test_no_other_answer_names_a_plan(api: Api, case: str) -> None:
    assert "X-OnceOnly-Plan" not in WITHOUT_KEY[case](api, {}).headers


def test_the_refusal_of_a_revoked_key_names_no_plan(api: Api) -> None:
    api.db.run(account.revoke_key, api.caller.key_id)
    answer = api.get("/me")
    assert answer.status_code == 403
    assert "X-OnceOnly-Plan" not in answer.headers
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("case", ["200 check-lock", "200 lease", "200 run", "200 usage", "200 usage/all"])
def test_metered_calls_and_usage_name_the_month(api: Api, case: str) -> None:
    assert WITH_KEY[case](api, {}).headers["X-OnceOnly-Month"] == datetime.now(UTC).strftime("%Y-%m")


@pytest.mark.parametrize("case", WITH_KEY)
def test_only_check_lock_carries_the_lock_status(api: Api, case: str) -> None:
    status = WITH_KEY[case](api, {}).headers.get("X-OnceOnly-Status")
    assert status == ("locked" if case == "200 check-lock" else None)


@pytest.mark.parametrize("case", [case for case in WITHOUT_KEY | WITH_KEY if case != "200 docs"])
def test_every_answer_is_json(api: Api, case: str) -> None:
    api.post("/ai/lease", key="held")
    answer = (WITHOUT_KEY | WITH_KEY)[case](api, {})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() is not None


@pytest.mark.parametrize(
    "path",
    "/check-lock /ai/run /ai/lease /ai/status /ai/result /me /me/notifications /usage /usage/all /metrics "
    "/events /runs /runs/x".split(),
)
def test_a_trailing_slash_is_never_redirected(api: Api, path: str) -> None:
    """§1.1: the Python client does not follow redirects."""
    for method in ("GET", "POST"):
        for trailing in ("/", "//", "/.", "/?a=b"):
            answer = api.request(method, path + trailing)
            assert answer.status_code < 300 or answer.status_code >= 400
            assert "Location" not in answer.headers


def test_a_content_type_without_a_body_is_accepted(api: Api) -> None:
    """§1.1: the SDKs send it on GET and DELETE too."""
    api.post("/ai/lease", key="k")
    for path in ("/me", "/usage/all", "/ai/status?key=k", "/events", "/runs/k"):
        answer = api.request("GET", path, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200
    answer = api.request("DELETE", "/me", headers={"Content-Type": "application/json"})
    assert answer.status_code == 405


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "text/plain",
        "application/x-www-form-urlencoded",
        None,
    ],
)
def test_a_json_body_is_taken_whatever_it_is_called(api: Api, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = '{"key": "schlüssel 😀", "ttl": 60}'.encode()
    answer = api.request("POST", "/check-lock", content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["key"] == "schlüssel 😀"


def test_answers_are_raw_utf8(api: Api) -> None:
    answer = api.post("/check-lock", key="schlüssel 😀")
    assert "schlüssel 😀".encode() in answer.content
