"""The registry of tools over HTTP (§2.14), by hand and with the published SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from onceonly import ApiError, OnceOnly, UnauthorizedError

from onceonly_jobs.api.app import create_app
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.plans import Plan
from tests.conftest import Account

if TYPE_CHECKING:
    from tests.integration.conftest import Api, App

SERVER_KEY = "a key of the server"
BASE_URL = "http://test/v1"
SECRET = "whsec_0123456789key"
SEND: dict[str, Any] = {
    "name": "send_email",
    "scope_id": "global",
    "url": "https://api.example.com/v1/send-email",
    "auth": {"type": "hmac_sha256", "secret": SECRET},
    "timeout_ms": 15000,
    "max_retries": 2,
    "enabled": True,
    "description": "Send transactional emails via SMTP service",
}


class InProcess(httpx.BaseTransport):
    """Carries requests to the application of this process, from any thread."""

    def __init__(self, app: App) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._app.request(
            request.method, str(request.url), headers=request.headers, content=request.read()
        )
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Client(httpx.Client):
    """The application as one API key sees it. Paths are below /v1."""

    def __init__(self, api: Api) -> None:
        headers = {"Authorization": f"Bearer {api.api_key}"}
        super().__init__(transport=InProcess(api.app), base_url=BASE_URL, headers=headers)
        self.sdk = OnceOnly(api.api_key, BASE_URL, transport=InProcess(api.app))


Connect = Callable[..., Client]


@pytest.fixture
def connect(serve: Callable[..., Api]) -> Connect:
    """Makes a tenant of a plan, at a server with a key for secrets."""

    def new(plan: Plan = Plan.AGENCY, secret_key: str | None = SERVER_KEY) -> Client:
        return Client(serve(plan, secret_key=secret_key))

    return new


@pytest.fixture
def api(connect: Connect) -> Client:
    return connect()


def put(api: Client, **changed: Any) -> httpx.Response:
    body = {name: value for name, value in (SEND | changed).items() if value is not ...}
    return api.post("/tools", content=json.dumps(body))


def wrong(answer: httpx.Response) -> list[Any]:
    """Where the request is wrong."""
    assert answer.status_code == 422, answer.text
    return [error["loc"] for error in answer.json()["detail"]]


def test_a_registered_tool_is_answered_with_200_and_without_its_secret(api: Client) -> None:
    answer = put(api)
    assert answer.status_code == 200
    shown = answer.json()
    assert shown.pop("secret_id").startswith("sec_")
    assert shown == {
        "name": "send_email",
        "scope_id": "global",
        "url": "https://api.example.com/v1/send-email",
        "auth_type": "hmac_sha256",
        "timeout_ms": 15000,
        "max_retries": 2,
        "enabled": True,
        "description": "Send transactional emails via SMTP service",
        "effect": "idempotent",
        "confirm_url": None,
        "dedup_ttl_s": None,
        "has_secret": True,
        "secret_mask": "***key",
    }


def test_a_tool_is_read_listed_switched_and_removed_in_its_scope(api: Client) -> None:
    put(api)
    own = put(api, scope_id="agent:bot 1/x", effect="read").json()
    scope = {"scope_id": "agent:bot 1/x"}
    assert api.get("/tools", params=scope).json() == [own]
    assert api.get("/tools/send_email", params=scope).json() == own
    off = api.post("/tools/send_email/toggle", params=scope, json={"enabled": False})
    assert (off.status_code, off.json()) == (200, own | {"enabled": False})
    assert api.get("/tools/send_email").json()["enabled"] is True
    gone = api.delete("/tools/send_email", params=scope)
    assert (gone.status_code, gone.json()) == (200, {"ok": True, "deleted": "send_email"})
    assert api.get("/tools", params=scope).json() == []
    assert [tool["scope_id"] for tool in api.get("/tools").json()] == ["global"]


def test_a_tool_that_is_not_there_is_a_404(api: Client) -> None:
    put(api, scope_id="agent:bot")
    for answer in (
        api.get("/tools/send_email"),
        api.post("/tools/send_email/toggle", json={"enabled": True}),
        api.delete("/tools/send_email"),
    ):
        assert answer.status_code == 404
        detail = answer.json()["detail"]
        assert (detail["error"], detail["tool"], detail["scope_id"]) == (
            "tool_not_found",
            "send_email",
            "global",
        )


def test_a_replayed_registration_answers_the_same(api: Client) -> None:
    assert put(api).json() == put(api).json()


def test_a_rotation_shows_a_new_id_and_mask(api: Client) -> None:
    first = put(api).json()
    second = put(api, auth={"type": "hmac_sha256", "secret": "another-secret-xyz"}).json()
    assert second["secret_id"] != first["secret_id"]
    assert second["secret_mask"] == "***xyz"
    kept = put(api, auth={"type": "hmac_sha256"}).json()
    assert kept == second


def test_absent_and_null_leave_a_setting_as_it_is(api: Client) -> None:
    first = put(api, timeout_ms=300, max_retries=0, enabled=False, effect="irreversible").json()
    names = ("timeout_ms", "max_retries", "enabled", "description", "effect", "scope_id")
    assert put(api, **dict.fromkeys(names, ...)).json() == first
    assert put(api, **dict.fromkeys(names[:-1])).json() == first


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", ["", "a b", "a/b", "ä", "a\n", ".", "..", "x" * 129, 1, None, ...]),
        (
            "scope_id",
            [
                "",
                "Global",
                "agent:",
                "agent: ",
                "team:x",
                "agent",
                "agent:\u0000",
                "agent:" + "x" * 257,
                1,
                None,
            ],
        ),
        (
            "url",
            [
                "",
                "example.com",
                "ftp://example.com",
                "file:///etc/passwd",
                "javascript:alert(1)",
                "http://",
                "http:///path",
                "http://user@example.com",
                "http://user:word@example.com",
                "http://@example.com",
                "http://example.com/#part",
                "http://example.com/#",
                "http://exa mple.com",
                " http://example.com",
                "http://example.com\n",
                "http://example.com\\@evil.example",
                "http://example.com:0",
                "http://example.com:65536",
                "http://example.com:x",
                "http://a..example.com",
                "http://-.example.com",
                "http://%41.com",
                "http://a,b.com",
                "http://...",
                "http://" + "a" * 64 + ".com",
                "http://" + "a." * 127 + "com",
                "http://127.1",
                "http://2130706433",
                "http://0x7f.0.0.0x1",
                "http://999.1.1.1",
                "http://0.0.0.0",
                "http://[::]",
                "http://224.0.0.1",
                "http://[::1",
                "http://xn--",
                "http://example.com/" + "x" * 2030,
                "http://example.com/\u0000",
                1,
                None,
                ...,
            ],
        ),
        (
            "auth",
            [
                ...,
                None,
                "hmac_sha256",
                {},
                {"secret": SECRET},
                {"type": "none", "secret": SECRET},
                {"type": "hmac_sha256"},
                {"type": "hmac_sha256", "secret": None},
                {"type": "hmac_sha256", "secret": "7 chars"},
                {"type": "hmac_sha256", "secret": "x" * 1025},
                {"type": "hmac_sha256", "secret": "nul \u0000 nul nul"},
                {"type": "hmac_sha256", "secret": "\ud800 lone surrogate"},
                {"type": "hmac_sha256", "secret": 12345678},
            ],
        ),
        ("timeout_ms", [249, 120_001, 0, -1, 300.5, "300", True, 10**30]),
        ("max_retries", [-1, 11, 1.5, "1", True]),
        ("enabled", ["true", 1, "no"]),
        ("description", ["x" * 513, 1, "\u0000"]),
        ("effect", ["", "Read", "safe", 1]),
    ],
)
def test_a_field_out_of_bounds_is_a_422_that_names_it(api: Client, field: str, values: list[Any]) -> None:
    for value in values:
        answer = put(api, **{field: value})
        if answer.status_code == 422 and answer.json()["detail"][0]["type"] == "json_invalid":
            continue  # a lone surrogate is not even JSON
        assert all(loc[:2] == ["body", field] for loc in wrong(answer)), value
    assert api.get("/tools").json() == []


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", ["x", "x" * 128, "a.b:c-d_E9", "..."]),
        ("scope_id", ["agent:x", "agent:" + "\u00fc" * 256, "agent:global", "agent: a b/c "]),
        (
            "url",
            [
                "http://localhost:9000/hook",
                "http://127.0.0.1:1/",
                "https://[::1]:8443/x?y=1&z=%20",
                "http://10.0.0.7",
                "http://tool_server:80",
                "HTTPS://Example.COM./a",
                "https://b\u00fccher.example/\u00e4",
                "http://example.com/" + "x" * 2029,
                "http://example.com/a@b",
            ],
        ),
        (
            "auth",
            [
                {"type": "hmac_sha256", "secret": "8letters"},
                {"type": "hmac_sha256", "secret": "\u00fc" * 1024},
            ],
        ),
        ("timeout_ms", [250, 120_000]),
        ("max_retries", [0, 10]),
        ("description", ["", "x" * 512]),
        ("effect", ["read", "idempotent", "irreversible"]),
    ],
)
def test_a_field_at_its_bounds_is_taken_as_it_is(api: Client, field: str, values: list[Any]) -> None:
    for value in values:
        answer = put(api, **{field: value})
        assert answer.status_code == 200, (value, answer.text)
        if field != "auth":
            assert answer.json()[field] == value


def test_unknown_fields_are_ignored(api: Client) -> None:
    assert put(api, colour="red", auth={"type": "hmac_sha256", "secret": SECRET, "x": 1}).status_code == 200


def test_how_long_calls_answer_their_repeats_is_the_tools_to_say(api: Client) -> None:
    for seconds in (9, 2_592_001, -1, 60.0, "60"):
        assert wrong(put(api, dedup_ttl_s=seconds)) == [["body", "dedup_ttl_s"]]
    assert put(api, dedup_ttl_s=10).json()["dedup_ttl_s"] == 10
    assert put(api).json()["dedup_ttl_s"] == 10, "what is absent stays as it is"


def test_a_reconcilable_tool_and_no_other_has_a_confirm_url(api: Client) -> None:
    confirm = "https://api.example.com/happened"
    assert wrong(put(api, effect="reconcilable")) == [["body"]]
    for effect in ("read", "idempotent", "irreversible", ...):
        assert wrong(put(api, effect=effect, confirm_url=confirm)) == [["body"]]
    assert wrong(put(api, effect="reconcilable", confirm_url="ftp://x")) == [["body", "confirm_url"]]
    shown = put(api, effect="reconcilable", confirm_url=confirm).json()
    assert (shown["effect"], shown["confirm_url"]) == ("reconcilable", confirm)


def test_a_refused_body_is_never_shown_back(api: Client) -> None:
    """What is refused may hold the secret, at its place or at a wrong one."""
    hidden = "my-very-own-secret"
    bodies: list[Any] = [
        SEND | {"name": ..., "auth": {"type": "hmac_sha256", "secret": hidden}},
        SEND | {"auth": {"type": "x", "secret": hidden}},
        SEND | {"auth": {"secret": hidden}},
        SEND | {"auth": hidden},
        SEND | {"auth": {"type": hidden}},
        SEND | {"auth": {"type": "hmac_sha256", "secret": [hidden]}},
        SEND | {"auth": {"type": "hmac_sha256", "secret": hidden * 99}},
        SEND | {"url": f"http://{hidden}@example.com"},
        SEND | {"effect": "reconcilable", "auth": {"type": "hmac_sha256", "secret": hidden}},
        [hidden],
        hidden,
    ]
    for body in bodies:
        if isinstance(body, dict):
            body = {name: value for name, value in body.items() if value is not ...}
        answer = api.post("/tools", json=body)
        wrong(answer)
        assert hidden not in answer.text
    broken = api.post("/tools", content=f'{{"auth": {{"secret": "{hidden}"}}')
    wrong(broken)
    assert hidden not in broken.text


def test_no_answer_and_no_event_has_the_secret(api: Client) -> None:
    answers = [
        put(api),
        put(api, auth={"type": "hmac_sha256"}),
        api.get("/tools"),
        api.get("/tools/send_email"),
        api.post("/tools/send_email/toggle", json={"enabled": False}),
        api.delete("/tools/send_email"),
        api.get("/events"),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert SECRET not in answer.text
    assert [event["type"] for event in answers[-1].json()] == [
        "tool_deleted",
        "tool_disabled",
        "tool_updated",
        "tool_created",
    ]
    assert all(event["data"]["actor"] for event in answers[-1].json())


def test_scopes_names_and_switches_of_a_request_are_checked(api: Client) -> None:
    put(api)
    for path in ("/tools", "/tools/send_email"):
        assert wrong(api.get(path, params={"scope_id": "team"})) == [["query", "scope_id"]]
    assert wrong(api.delete("/tools/send_email", params={"scope_id": ""})) == [["query", "scope_id"]]
    assert wrong(api.get("/tools/a%20b")) == [["path", "name"]]
    assert wrong(api.get("/tools/a%00b")) == [["path", "name"]]
    for body in ({}, {"enabled": "no"}, {"enabled": None}, {"enabled": 0}):
        assert wrong(api.post("/tools/send_email/toggle", json=body)) == [["body", "enabled"]]
    assert api.get("/tools/send_email").json()["enabled"] is True


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.STARTER])
def test_a_plan_without_tools_is_a_403(connect: Connect, plan: Plan) -> None:
    api = connect(plan)
    for answer in (
        put(api),
        api.get("/tools"),
        api.get("/tools/send_email"),
        api.post("/tools/send_email/toggle", json={"enabled": True}),
        api.delete("/tools/send_email"),
    ):
        assert answer.status_code == 403
        assert answer.json()["detail"] == {
            "error": "feature_not_available",
            "message": "upgrade required",
            "feature": "tools",
            "plan": plan.value,
        }


def test_a_full_plan_is_a_403(connect: Connect) -> None:
    api = connect(Plan.PRO)
    for n in range(10):
        assert put(api, name=f"tool{n}").status_code == 200
    full = put(api)
    assert full.status_code == 403
    assert full.json() == {"detail": {"error": "plan_limit", "message": "PRO plan limit: max 10 tools"}}
    api.delete("/tools/tool0")
    assert put(api).status_code == 200


def test_a_server_without_a_key_says_which_setting_it_lacks(connect: Connect) -> None:
    api = connect(secret_key=None)
    refused = put(api)
    assert refused.status_code == 400
    detail = refused.json()["detail"]
    assert (detail["error"], detail["feature"]) == ("unsupported", "tools")
    assert "ONCEONLY_SECRET_KEY" in detail["message"]
    assert api.get("/tools").json() == []


def test_the_registry_is_not_metered(api: Client) -> None:
    before = api.get("/usage/all").json()
    put(api)
    api.get("/tools")
    api.delete("/tools/send_email")
    assert api.get("/usage/all").json() == before


def test_a_key_of_another_tenant_sees_nothing(connect: Connect) -> None:
    mine, other = connect(), connect()
    put(mine)
    assert other.get("/tools").json() == []
    assert other.get("/tools/send_email").status_code == 404
    assert other.delete("/tools/send_email").status_code == 404
    assert mine.get("/tools/send_email").status_code == 200


def test_the_published_sdk_manages_tools(api: Client) -> None:
    gov = api.sdk.gov
    created = gov.create_tool(SEND)
    assert (created["name"], created["has_secret"], created["secret_mask"]) == ("send_email", True, "***key")
    scoped = gov.create_tool(SEND | {"scope_id": "agent:bot"})
    assert gov.list_tools() == [created]
    assert gov.list_tools(scope_id="agent:bot") == [scoped]
    assert gov.get_tool("send_email") == created
    assert gov.toggle_tool("send_email", enabled=False) == created | {"enabled": False}
    assert gov.get_tool("send_email", scope_id="agent:bot")["enabled"] is True
    assert gov.delete_tool("send_email") == {"ok": True, "deleted": "send_email"}
    with pytest.raises(ApiError) as missing:
        gov.get_tool("send_email")
    assert (missing.value.status_code, missing.value.detail["error"]) == (404, "tool_not_found")


def test_the_published_sdk_understands_refusals(connect: Connect) -> None:
    with pytest.raises(ApiError) as gated:
        connect(Plan.FREE).sdk.gov.create_tool(SEND)
    assert (gated.value.status_code, gated.value.detail["error"]) == (403, "feature_not_available")
    gov = connect(Plan.PRO).sdk.gov
    for n in range(10):
        gov.create_tool(SEND | {"name": f"tool{n}"})
    with pytest.raises(UnauthorizedError, match="plan_limit"):
        gov.create_tool(SEND)


def test_the_published_sdk_manages_tools_without_blocking(settings: Settings, own: Account) -> None:
    async def manage() -> None:
        app = create_app(settings.model_copy(update={"secret_key": SERVER_KEY}))
        client = OnceOnly(own.api_key, BASE_URL, async_transport=httpx.ASGITransport(app))
        gov = client.gov
        async with app.router.lifespan_context(app):
            created = await gov.create_tool_async(SEND)
            assert await gov.list_tools_async() == [created]
            assert await gov.get_tool_async("send_email") == created
            assert (await gov.toggle_tool_async("send_email", enabled=False))["enabled"] is False
            assert await gov.delete_tool_async("send_email") == {"ok": True, "deleted": "send_email"}
            await client.aclose()

    asyncio.run(manage())
