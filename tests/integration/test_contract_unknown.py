"""GET /ai/unknown and POST /ai/settle over HTTP: shapes, refusals, paging, isolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import calls, claims

if TYPE_CHECKING:
    from tests.integration.conftest import Api

TOOL = {
    "name": "pay",
    "url": "https://api.example.com/pay",
    "auth": {"type": "hmac_sha256", "secret": "a-long-shared-secret"},
    "effect": "irreversible",
}
NEVER = 2**62


@pytest.fixture
def api(serve: Callable[..., Api]) -> Api:
    """An agency tenant with the tool `pay`, whose calls nobody waits for."""
    made = serve(Plan.AGENCY, secret_key="a key of the server", tool_patience_s=0.01)
    assert made.post("/tools", **TOOL).status_code == 200
    return made


def lose(api: Api, to: str = "a") -> str:
    """Make a call that gets lost, as a worker does; its key."""
    asked = api.post("/ai/run", agent_id="bot", tool="pay", args={"to": to}, spend_usd=0.5)
    key = str(asked.json()["detail"]["key"])
    run = api.db.run(calls_run, api.tenant_id, key)
    claim = api.db.run(claims.claim, run.id, calls.JOB, 15.0, None)
    assert claim is not None
    api.db.run(claims.hold_unknown, claim, "no answer", None)
    return key


def calls_run(tenant_id: str, key: str) -> Any:
    from onceonly_jobs.store import runs

    return (yield from runs.find(tenant_id, key))


def documented(api: Api, method: str, path: str) -> set[str]:
    openapi = api.app.request("GET", "/openapi.json").json()
    answer = openapi["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    return set(openapi["components"]["schemas"][answer["$ref"].rsplit("/", 1)[1]]["properties"])


def test_an_unknown_call_is_listed_as_documented(api: Api, recent: Any) -> None:
    key = lose(api)
    answer = api.get("/ai/unknown")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == documented(api, "get", "/v1/ai/unknown")
    [item] = body["items"]
    decision_id, idempotency_key = item.pop("decision_id"), item.pop("idempotency_key")
    assert isinstance(decision_id, int)
    assert len(idempotency_key) == 64
    assert item == {
        "key": key,
        "agent_id": "bot",
        "tool": "pay",
        "effect": "irreversible",
        "args": {"to": "a"},
        "run_id": key,
        "since": recent,
        "message": "no answer",
        "reserved_usd": 0.5,
        "confirmations": 0,
        "confirm_at": None,
    }


def test_the_list_is_paged_and_counts_all(api: Api) -> None:
    keys = [lose(api, to) for to in "abc"]
    pages = [api.get("/ai/unknown", limit=2, offset=offset).json() for offset in (0, 2, 4)]
    assert [[item["key"] for item in page["items"]] for page in pages] == [keys[:2], keys[2:], []]
    assert {page["total"] for page in pages} == {3}


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 501}, {"offset": -1}, {"limit": "x"}])
def test_a_page_that_can_not_be_is_422(api: Api, params: dict[str, Any]) -> None:
    assert api.get("/ai/unknown", **params).status_code == 422


def test_a_settlement_is_answered_as_documented(api: Api, recent: Any) -> None:
    key = lose(api)
    decision_id = api.get("/ai/unknown").json()["items"][0]["decision_id"]
    answer = api.post("/ai/settle", key=key, happened=True, result={"paid": True}, decision_id=decision_id)
    assert answer.status_code == 200
    assert set(answer.json()) == documented(api, "post", "/v1/ai/settle")
    assert answer.json() == {
        "ok": True,
        "status": "settled",
        "key": key,
        "happened": True,
        "outcome": "completed",
        "error_code": None,
        "result": {"paid": True},
        "version": 4,
        "decision_id": decision_id,
        "settled_by": api.caller.key_id,
        "settled_at": recent,
    }
    assert api.get("/ai/result", key=key).json()["result"] == {"paid": True}
    assert api.get("/ai/unknown").json() == {"total": 0, "items": []}
    assert api.post("/ai/settle", key=key, happened=True).json() == answer.json()


def test_what_did_not_happen_is_failed_for_its_readers(api: Api) -> None:
    key = lose(api)
    body = api.post("/ai/settle", key=key, happened=False).json()
    assert (body["outcome"], body["error_code"], body["result"]) == ("failed", "did_not_happen", None)
    status = api.get("/ai/status", key=key).json()
    assert (status["status"], status["error_code"]) == ("failed", "did_not_happen")


def test_conflicts_are_409_and_say_what_stands(api: Api) -> None:
    key = lose(api)
    other = api.post("/ai/settle", key=key, happened=True, decision_id=NEVER)
    assert (other.status_code, other.json()["detail"]["reason"]) == (409, "other_call")
    api.post("/ai/settle", key=key, happened=False)
    refused = api.post("/ai/settle", key=key, happened=True)
    assert refused.status_code == 409
    assert refused.json()["detail"] == {
        "error": "settlement_conflict",
        "reason": "settled_otherwise",
        "message": "this call has already been settled the other way; that stands",
        "key": key,
        "happened": False,
        "settled_by": api.caller.key_id,
    }
    api.post("/ai/lease", key="own")
    own = api.post("/ai/settle", key="own", happened=True)
    assert (own.status_code, own.json()["detail"]["reason"]) == (409, "not_unknown")
    missing = api.post("/ai/settle", key="missing", happened=True)
    assert (missing.status_code, missing.json()["detail"]["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"key": "k"},
        {"happened": True},
        {"key": "k", "happened": 1},
        {"key": "k", "happened": True, "result": []},
        {"key": "k", "happened": True, "cost_usd": -0.1},
        {"key": "k", "happened": False, "result": {}},
        {"key": "k", "happened": True, "resutl": {}},
        {"key": "k", "happened": True, "decision_id": 0},
        {"key": "k", "happened": True, "result": {"x": "\x00"}},
    ],
)
def test_a_malformed_settlement_is_422(api: Api, body: dict[str, Any]) -> None:
    assert api.request("POST", "/ai/settle", json=body).status_code == 422


def test_a_result_that_is_too_large_is_422_and_settles_nothing(api: Api) -> None:
    key = lose(api)
    result = {"x": "x" * api.app.settings.max_result_bytes}
    answer = api.post("/ai/settle", key=key, happened=True, result=result)
    assert answer.status_code in (413, 422)
    assert api.get("/ai/unknown").json()["total"] == 1


def test_neither_is_metered(api: Api) -> None:
    key = lose(api)
    before = api.usage("ai")
    api.get("/ai/unknown")
    api.post("/ai/settle", key=key, happened=True)
    assert api.usage("ai") == before


def test_a_settled_call_of_another_tenant_is_404(api: Api, serve: Callable[..., Api]) -> None:
    key = lose(api)
    other = serve(Plan.AGENCY)
    assert other.post("/ai/settle", key=key, happened=True).status_code == 404
    assert other.get("/ai/unknown").json()["total"] == 0
