"""The short way of usual requests, which must not be told from the regular one, but by its speed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sa

from onceonly_jobs.api import state
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import account, claims, runs
from onceonly_jobs.services.calls import FUNCTION
from onceonly_jobs.store.database import on

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

PATHS = ("/check-lock", "/ai/run")


def change(api: Api, operation: Any) -> None:
    with api.db.engine.begin() as connection:
        on(connection, operation)


@pytest.mark.parametrize("path", PATHS)
def test_a_key_that_is_revoked_is_refused_from_the_next_request_on(api: Api, path: str) -> None:
    for n in range(3):
        assert api.post(path, key=f"before{n}").status_code == 200
    change(api, account.revoke_key(api.caller.key_id))
    answer = api.post(path, key="after")
    assert (answer.status_code, answer.json()) == (403, {"detail": "API key disabled"})
    assert api.rows("locks" if path == "/check-lock" else "runs") == 3


@pytest.mark.parametrize("path", PATHS)
def test_another_plan_holds_from_the_next_request_on(api: Api, path: str) -> None:
    api.post(path, key="before")
    assert api.post(path, key="before2").headers["X-OnceOnly-Plan"] == "agency"
    change(api, account.set_plan(api.tenant_id, Plan.FREE))
    answer = api.post(path, key="after", ttl=10_000_000)
    assert answer.headers["X-OnceOnly-Plan"] == "free"
    assert answer.json()["ttl"] == api.post("/check-lock", key="x", ttl=10_000_000).json()["ttl"] < 1_000_000
    api.use_up("ai" if path == "/ai/run" else "make", 100_000)
    assert api.post(path, key="beyond").status_code == 402


@pytest.mark.parametrize("path", PATHS)
def test_a_rate_limited_key_is_counted_once_a_request(new_tenant: NewApi, path: str) -> None:
    api = new_tenant(rate_limit="5/hour")
    answers = [api.post(path, key=f"k{n}").status_code for n in range(7)]
    assert answers == [200] * 5 + [429] * 2
    change(api, account.revoke_key(api.caller.key_id))
    assert api.post(path, key="k").status_code == 403


def test_whoever_asks_for_a_key_at_the_same_time_one_has_it(api: Api) -> None:
    api.post("/check-lock", key="warm")
    for path, field in (("/check-lock", "locked"), ("/ai/run", "acquired")):
        answers = api.at_once(16, lambda _, path=path: api.post(path, key="k"))
        statuses = Counter(answer.json()["status"] for answer in answers)
        assert statuses[field] == 1
        assert statuses.total() == 16


def test_many_keys_at_once_each_have_their_own_answer(api: Api) -> None:
    api.post("/check-lock", key="warm")
    for path in PATHS:
        answers = api.at_once(24, lambda n, path=path: api.post(path, key=f"k{n % 12}", ttl=60 + n % 12))
        for n, answer in enumerate(answers):
            body = answer.json()
            assert (answer.status_code, body["key"], body["ttl"]) == (200, f"k{n % 12}", 60 + n % 12)
            assert answer.headers["X-Request-Id"].startswith("req_")
        first = Counter(answer.json()["status"] for answer in answers)
        assert first["locked"] + first["acquired"] == 12


@pytest.mark.parametrize("path", PATHS)
def test_of_headers_that_are_repeated_the_first_counts_as_on_every_path(
    new_tenant: NewApi, path: str
) -> None:
    first, second = new_tenant(), new_tenant()
    for api in (first, second):
        api.post(path, key="warm")

    def ask(*extra: tuple[str, str]) -> httpx.Response:
        keys = [("Authorization", f"Bearer {key}") for key in (first.api_key, second.api_key)]
        return first.app.request("POST", f"/v1{path}", json={"key": "k"}, headers=[*keys, *extra])

    assert ask().status_code == 200
    table = "locks" if path == "/check-lock" else "runs"
    assert (first.rows(table), second.rows(table)) == (2, 1)
    ids = [("X-Request-Id", "one"), ("X-Request-Id", "two")]
    assert ask(*ids).headers["X-Request-Id"] == "one"
    assert ask(("X-Request-Id", ""), ids[1]).headers["X-Request-Id"].startswith("req_")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("limit", [None, "1/hour"])
def test_whoever_is_refused_for_the_key_is_told_no_plan(
    new_tenant: NewApi, path: str, limit: str | None
) -> None:
    """§1.4: the plan is on authenticated answers."""
    api = new_tenant(rate_limit=limit)
    assert api.post(path, key="before").headers["X-OnceOnly-Plan"] == "agency"
    change(api, account.revoke_key(api.caller.key_id))
    answers = [api.post(path, key="after"), api.get("/me")]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert not [answer for answer in answers if "X-OnceOnly-Plan" in answer.headers]


def asgi(api: Api, path: str, pieces: list[bytes], api_key: str | None = None) -> tuple[int, Any]:
    """A request whose body comes in these pieces, straight to the application."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": f"/v1{path}",
        "raw_path": f"/v1{path}".encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {api_key or api.api_key}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    sent: list[Any] = []
    left = list(pieces)

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    api.app._portal.call(api.app.asgi, scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.parametrize("path", PATHS)
def test_a_body_in_pieces_is_a_body(api: Api, path: str) -> None:
    api.post(path, key="warm")
    whole = json.dumps({"key": "k", "ttl": 77}).encode()
    status, body = asgi(api, path, [whole[:5], whole[5:]])
    assert (status, body["key"], body["ttl"]) == (200, "k", 77)
    assert asgi(api, path, [whole])[1]["status"] in ("duplicate", "polling")
    assert asgi(api, path, [b'{"key": "k", "ttl": NaN}'])[0] == 422
    assert asgi(api, path, [b"x" * (api.app.settings.max_body_bytes + 1)])[0] == 413
    assert asgi(api, path, [whole], "once_live_nobody")[0] == 401


@pytest.mark.parametrize("catalogue_age_s", [60, 0])
def test_connections_that_were_ended_meanwhile_are_not_noticed_by_callers(
    api: Api, monkeypatch: pytest.MonkeyPatch, catalogue_age_s: float
) -> None:
    monkeypatch.setattr(state, "CATALOGUE_AGE_S", catalogue_age_s)
    ended = sa.text(
        "SELECT pg_terminate_backend(pid, 10_000) FROM pg_stat_activity WHERE usename = current_user "
        "AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    for path in PATHS:
        assert api.post(path, key="before").status_code == 200
    with api.db.engine.connect() as connection:
        connection.execute(ended)
    api.db.close()
    answers = [api.post(path, key=f"after{n}").status_code for n in range(3) for path in PATHS]
    assert answers == [200] * 6


def test_the_governed_way_refuses_what_the_policy_does(api: Api) -> None:
    api.post("/policies/bot", max_actions_per_hour=3)
    asked = [
        api.post("/ai/run", key=f"k{n}", metadata={"agent_id": "bot"}).json()["status"] for n in range(5)
    ]
    assert asked == ["acquired"] * 3 + ["failed"] * 2
    run = api.db.run(runs.find, api.tenant_id, "k4")
    assert (run.error_code, run.error_message) == ("policy_blocked", "max_actions_per_hour_exceeded")


def test_tool_calls_at_once_are_each_judged_and_answered(api: Api) -> None:
    api.post("/check-lock", key="warm")
    send = JobSpec(name=FUNCTION + "send", queue="nobody", effect="idempotent", time_limit_s=60)
    api.db.run(claims.announce, [send])
    api.post("/policies/bot", allowed_tools=["send", "other"], max_calls_per_tool={"send": 6})

    def ask(n: int) -> Any:
        tool = "send" if n % 3 else "other"
        body = {"agent_id": "bot", "tool": tool, "args": {"n": n // 2}}
        return api.request("POST", "/ai/run", json=body, headers={"Prefer": "wait=0"})

    answers = api.at_once(24, ask)
    assert Counter(answer.status_code for answer in answers[::3]) == {404: 8}
    codes = Counter(answer.status_code for n, answer in enumerate(answers) if n % 3)
    assert codes.keys() == {409, 402}, "at work, or beyond the limit"
    assert 6 <= codes[409] <= 10, "four calls are asked for twice"
    assert api.usage("ai")["usage"] == 6
    change(api, account.revoke_key(api.caller.key_id))
    assert ask(100).status_code == 403
