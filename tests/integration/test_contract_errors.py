"""Every error body of §1.2 and §1.5: `{"detail": <string | object | array>}`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from starlette.requests import Request

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import LeaseConflict
from onceonly_jobs.services import account

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

MISSING = {"detail": "Missing Authorization Bearer token"}
INVALID = {"detail": "Invalid API key"}
DISABLED = {"detail": "API key disabled"}

ROUTES = [
    ("POST", "/check-lock"),
    ("POST", "/ai/run"),
    ("POST", "/ai/lease"),
    ("POST", "/ai/extend"),
    ("POST", "/ai/complete"),
    ("POST", "/ai/fail"),
    ("POST", "/ai/cancel"),
    ("GET", "/ai/status"),
    ("GET", "/ai/result"),
    ("GET", "/me"),
    ("POST", "/me/notifications"),
    ("GET", "/usage"),
    ("GET", "/usage/all"),
    ("GET", "/metrics"),
    ("GET", "/events"),
    ("POST", "/events"),
    ("GET", "/runs"),
    ("GET", "/runs/x"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_asks_for_a_key_before_it_looks_at_the_request(api: Api, method: str, path: str) -> None:
    """§1.2: key check before body validation."""
    for broken in (b"", b"{not json", b"\xff\x00"):
        answer = api.app.request(method, f"/v1{path}", content=broken)
        assert (answer.status_code, answer.json()) == (401, MISSING)
        answer = api.request(method, path, content=broken, headers={"Authorization": "Bearer once_live_x"})
        assert (answer.status_code, answer.json()) == (401, INVALID)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer    ", "Basic dXNlcjpwYXNz", "Token {key}", "{key}", "Bearer:{key}"],
)
def test_another_scheme_or_no_token_is_a_missing_token(api: Api, header: str) -> None:
    answer = api.request("GET", "/me", headers={"Authorization": header.format(key=api.api_key)})
    assert (answer.status_code, answer.json()) == (401, MISSING)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_case_insensitive(api: Api, scheme: str) -> None:
    answer = api.request("GET", "/me", headers={"Authorization": f"{scheme} {api.api_key}"})
    assert answer.status_code == 200


def test_an_unknown_or_malformed_key_is_invalid(api: Api) -> None:
    key = api.api_key
    for wrong in (
        key + "x",
        key[:-1],
        key.upper(),
        key.removeprefix("once_live_"),
        f"{key} {key}",
        "once_live_",
        "x" * 5000,
    ):
        answer = api.request("GET", "/me", headers={"Authorization": f"Bearer {wrong}"})
        assert (answer.status_code, answer.json()) == (401, INVALID)


def test_a_revoked_key_is_disabled_and_other_keys_of_the_tenant_are_not(api: Api) -> None:
    """§1.2: one of the strings that TypeScript treats as an authentication failure."""
    other = api.db.run(account.create_key, api.tenant_id).api_key
    assert api.db.run(account.revoke_key, api.caller.key_id)
    answer = api.post("/check-lock", key="k")
    assert (answer.status_code, answer.json()) == (403, DISABLED)
    assert api.request("GET", "/me", headers={"Authorization": f"Bearer {other}"}).status_code == 200
    assert api.rows("locks") == 0


def test_every_key_of_a_disabled_tenant_is_disabled_until_it_is_enabled(api: Api) -> None:
    api.db.run(account.set_disabled, api.tenant_id, True)
    answer = api.get("/me")
    assert (answer.status_code, answer.json()) == (403, DISABLED)
    api.db.run(account.set_disabled, api.tenant_id, False)
    assert api.get("/me").status_code == 200


@pytest.mark.parametrize(
    ("path", "kind", "limit"),
    [("/check-lock", "make", 1000), ("/ai/lease", "ai", 3000), ("/ai/run", "ai", 3000)],
)
def test_a_used_up_free_plan_is_payment_required(
    new_tenant: NewApi, path: str, kind: str, limit: int
) -> None:
    """§1.5: `detail` must be an object; a string is dropped by the SDKs."""
    api = new_tenant(Plan.FREE)
    api.use_up(kind, limit)
    answer = api.post(path, key="k")
    assert answer.status_code == 402
    assert answer.json() == {
        "detail": {
            "error": "payment_required",
            "highlights": "Plan limit reached",
            "message": f"free plan limit reached: {limit} of {limit} {kind} this month",
            "plan": "free",
            "kind": kind,
            "limit": limit,
            "usage": limit,
            "upgrade_url": "",
        }
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nosuch"),
        ("POST", "/check-lock/"),
        ("GET", "/me/"),
        ("GET", ""),
        ("GET", "//me"),
        ("POST", "/check_lock"),
    ],
)
def test_an_unknown_route_is_not_found(api: Api, method: str, path: str) -> None:
    answer = api.request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/check-lock"), ("DELETE", "/me"), ("PUT", "/events"), ("PATCH", "/ai/run"), ("OPTIONS", "/me")],
)
def test_another_method_is_not_allowed(api: Api, method: str, path: str) -> None:
    answer = api.request(method, path)
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})


def test_an_unknown_key_is_not_found(api: Api) -> None:
    answer = api.get("/ai/status", key="k")
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": {"error": "not_found", "message": "no run or lease under this key", "key": "k"}
    }


def test_conflicts_have_one_body(api: Api) -> None:
    """§2.8; `finished` and `not_owner` in every situation: test_contract_extend_complete_fail_cancel.py."""
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    answer = api.post("/ai/complete", key="k", lease_id="lease_other")
    assert answer.status_code == 409
    assert answer.json() == {
        "detail": {
            "error": "lease_conflict",
            "reason": "not_owner",
            "message": "lease is held by another caller",
            "key": "k",
            "status": "in_progress",
            "version": 1,
        }
    }
    api.post("/ai/fail", key="k", lease_id=lease_id, error_code="e")
    answer = api.post("/ai/complete", key="k", lease_id=lease_id)
    assert answer.status_code == 409
    assert answer.json() == {
        "detail": {
            "error": "lease_conflict",
            "reason": "finished",
            "message": "the run is already finished",
            "key": "k",
            "status": "failed",
            "version": 2,
        }
    }


def test_the_third_reason_is_that_of_a_servers_own_worker() -> None:
    """§2.9: a caller's expired lease is accepted, a worker's gets `expired`; workers do not come over HTTP."""
    assert LeaseConflict("expired", "k", "in_progress", 3).detail == {
        "error": "lease_conflict",
        "reason": "expired",
        "message": "lease has expired",
        "key": "k",
        "status": "in_progress",
        "version": 3,
    }


def test_a_missing_field_has_the_validators_shape(api: Api) -> None:
    answer = api.request("POST", "/check-lock", json={})
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": [{"type": "missing", "loc": ["body", "key"], "msg": "Field required", "input": {}}]
    }


def test_a_missing_body_has_the_validators_shape(api: Api) -> None:
    answer = api.request("POST", "/check-lock")
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]
    }


def test_everything_wrong_is_told_at_once_and_what_was_sent_is_cut_short(api: Api) -> None:
    answer = api.post("/ai/lease", key="k" * 5000, ttl="soon", metadata=[])
    assert answer.status_code == 422
    problems = {tuple(problem["loc"]): problem for problem in answer.json()["detail"]}
    assert set(problems) == {("body", "key"), ("body", "ttl"), ("body", "metadata")}
    assert problems["body", "ttl"]["input"] == "soon"
    assert all(set(problem) == {"type", "loc", "msg", "input"} for problem in problems.values())
    assert len(answer.content) < 2000


def test_a_body_above_the_limit_is_too_large(serve: Callable[..., Api]) -> None:
    api = serve(max_body_bytes=65_536)
    filler = 65_536 - len('{"key":"k","extra":""}')
    assert api.post("/check-lock", key="k", extra="x" * filler).status_code == 200
    answer = api.post("/check-lock", key="k", extra="x" * (filler + 1))
    assert answer.status_code == 413
    assert answer.json() == {
        "detail": {
            "error": "payload_too_large",
            "message": "request body is larger than 65536 bytes",
            "limit_bytes": 65_536,
        }
    }


def test_a_key_above_its_rate_is_told_when_to_come_again(new_tenant: NewApi) -> None:
    """§1.4: Retry-After in whole seconds, never a date."""
    api = new_tenant(rate_limit="2/minute")
    assert [api.get("/me").status_code for _ in range(2)] == [200, 200]
    answer = api.post("/check-lock", key="k")
    assert answer.status_code == 429
    retry_after = answer.headers["Retry-After"]
    assert answer.json() == {
        "detail": {
            "error": "rate_limited",
            "message": f"too many requests; retry in {retry_after} s",
        }
    }
    assert retry_after.isdigit()
    assert answer.headers["X-OnceOnly-Plan"] == "agency"
    assert 1 <= int(retry_after) <= 60
    assert api.rows("locks") == 0


def test_the_configured_rate_is_per_key(serve: Callable[..., Api]) -> None:
    api = serve(rate_limit="1/minute")
    other = api.db.run(account.create_key, api.tenant_id).api_key
    assert [api.get("/me").status_code for _ in range(2)] == [200, 429]
    assert api.request("GET", "/me", headers={"Authorization": f"Bearer {other}"}).status_code == 200


UNAVAILABLE = {
    "detail": {
        "error": "unavailable",
        "message": "the database does not answer; the request can be repeated",
    }
}


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_without_its_database_the_server_is_unavailable(serve: Callable[..., Api], closed_port: int) -> None:
    api = serve(database_url=f"postgresql://u:p@127.0.0.1:{closed_port}/none")
    for method, path in (("POST", "/check-lock"), ("GET", "/me")):
        answer = api.request(method, path, json={"key": "k"})
        assert (answer.status_code, answer.json()) == (503, UNAVAILABLE)
        assert answer.headers["Retry-After"] == "1"
    assert api.app.request("GET", "/ready").status_code == 503
    assert api.app.request("GET", "/health").json() == {"ok": True}


def test_a_database_that_goes_away_makes_it_unavailable_until_it_is_back(
    serve: Callable[..., Api], owner_url: str
) -> None:
    api = serve()
    assert api.post("/check-lock", key="k").json()["status"] == "locked"
    admin = sa.create_engine(
        sa.make_url(owner_url).set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    name = sa.make_url(owner_url).database
    with admin.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        for _ in range(3):
            answer = api.post("/check-lock", key="k")
            assert (answer.status_code, answer.json()) == (503, UNAVAILABLE)
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert api.post("/check-lock", key="k").json()["status"] == "duplicate"


def test_an_unexpected_error_has_a_body_too_and_tells_nothing(serve: Callable[..., Api]) -> None:
    api = serve()

    async def broken(_: Request) -> None:
        raise RuntimeError("the secret is 42")

    api.app.asgi.router.add_route("/broken", broken)
    answer = api.app.request("GET", "/broken")
    assert answer.status_code == 500
    assert answer.json() == {
        "detail": {"error": "internal_error", "message": "unexpected error; see the log"}
    }
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(("revision", "status"), [("0001", 503), ("older", 503), ("9999", 200)])
def test_ready_tells_of_a_database_that_is_not_migrated_yet(
    serve: Callable[..., Api], owner_url: str, revision: str, status: int
) -> None:
    """A newer version's schema keeps this one serving: its API processes stay in service while they are replaced."""
    api = serve()
    ready = api.app.request("GET", "/ready")
    assert (ready.status_code, ready.json()["ok"]) == (200, True)
    with sa.create_engine(owner_url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :at"), {"at": revision})
    ready = api.app.request("GET", "/ready")
    body: dict[str, Any] = ready.json()
    assert (ready.status_code, body["ok"], body["schema"]) == (status, status == 200, revision)
