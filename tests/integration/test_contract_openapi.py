"""/docs and /openapi.json: every route is there, described, and served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Api, App

CONTRACT = {
    ("POST", "/v1/check-lock"),
    ("POST", "/v1/ai/run"),
    ("POST", "/v1/ai/lease"),
    ("GET", "/v1/ai/status"),
    ("GET", "/v1/ai/result"),
    ("POST", "/v1/ai/extend"),
    ("POST", "/v1/ai/complete"),
    ("POST", "/v1/ai/fail"),
    ("POST", "/v1/ai/cancel"),
    ("GET", "/v1/ai/unknown"),
    ("POST", "/v1/ai/settle"),
    ("GET", "/v1/dead"),
    ("GET", "/v1/dead/{key}"),
    ("POST", "/v1/dead/replay"),
    ("POST", "/v1/dead/discard"),
    ("POST", "/v1/policies/{agent_id}"),
    ("POST", "/v1/policies/{agent_id}/from-template"),
    ("GET", "/v1/policies"),
    ("GET", "/v1/policies/{agent_id}"),
    ("POST", "/v1/agents/{agent_id}/disable"),
    ("POST", "/v1/agents/{agent_id}/enable"),
    ("GET", "/v1/agents/{agent_id}/logs"),
    ("GET", "/v1/agents/{agent_id}/metrics"),
    ("POST", "/v1/tools"),
    ("GET", "/v1/tools"),
    ("GET", "/v1/tools/{name}"),
    ("POST", "/v1/tools/{name}/toggle"),
    ("DELETE", "/v1/tools/{name}"),
    ("POST", "/v1/schedules"),
    ("GET", "/v1/schedules"),
    ("GET", "/v1/schedules/{name}"),
    ("PATCH", "/v1/schedules/{name}"),
    ("DELETE", "/v1/schedules/{name}"),
    ("POST", "/v1/schedules/{name}/pause"),
    ("POST", "/v1/schedules/{name}/resume"),
    ("POST", "/v1/schedules/{name}/trigger"),
    ("POST", "/v1/schedules/{name}/backfill"),
    ("GET", "/v1/schedules/{name}/next"),
    ("GET", "/v1/schedules/{name}/ticks"),
    ("GET", "/v1/me"),
    ("POST", "/v1/me/notifications"),
    ("POST", "/v1/me/webhook"),
    ("GET", "/v1/me/webhook"),
    ("DELETE", "/v1/me/webhook"),
    ("GET", "/v1/me/webhook/deliveries"),
    ("POST", "/v1/me/webhook/test"),
    ("POST", "/v1/me/webhook/retry"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/usage/all"),
    ("GET", "/v1/metrics"),
    ("GET", "/v1/events"),
    ("POST", "/v1/events"),
    ("GET", "/v1/runs"),
    ("GET", "/v1/runs/{run_id}"),
    ("GET", "/v1/runs/{run_id}/stream"),
    ("GET", "/v1/events/stream"),
    ("GET", "/health"),
    ("GET", "/ready"),
}


@pytest.fixture(scope="module")
def openapi(shared_app: App) -> dict[str, Any]:
    answer = shared_app.request("GET", "/openapi.json")
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


def operations(openapi: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    }


def test_the_docs_page_is_served_without_a_key(shared_app: App) -> None:
    answer = shared_app.request("GET", "/docs")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/openapi.json" in answer.text


def test_every_route_of_the_contract_is_documented(openapi: dict[str, Any]) -> None:
    assert set(operations(openapi)) >= CONTRACT


def test_every_documented_path_is_served(openapi: dict[str, Any], api: Api) -> None:
    for method, path in operations(openapi):
        headers = {"Authorization": f"Bearer {api.api_key}", "Last-Event-ID": "no id, so no stream"}
        answer = api.app.request(method, path.replace("{run_id}", "x"), headers=headers)
        served = answer.status_code in (200, 422) or isinstance(answer.json()["detail"], dict)
        assert served, f"{method} {path}"


def test_every_route_has_a_summary_and_a_description(openapi: dict[str, Any]) -> None:
    lacking = [
        f"{method} {path}"
        for (method, path), operation in operations(openapi).items()
        if len(operation.get("summary", "")) < 8 or len(operation.get("description", "")) < 10
    ]
    assert lacking == []


def test_summaries_and_operation_ids_are_unique(openapi: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(openapi).values()]
    assert len(set(ids)) == len(ids)


def test_every_route_of_the_contract_shows_that_it_wants_a_key(openapi: dict[str, Any]) -> None:
    (scheme,) = openapi["components"]["securitySchemes"].items()
    assert (scheme[1]["type"], scheme[1]["scheme"]) == ("http", "bearer")
    for (method, path), operation in operations(openapi).items():
        wanted = [{scheme[0]: []}] if path.startswith("/v1/") else None
        assert operation.get("security") == wanted, f"{method} {path}"


def test_every_answer_of_the_contract_has_a_schema(openapi: dict[str, Any]) -> None:
    lacking = [
        f"{method} {path}"
        for (method, path), operation in operations(openapi).items()
        if path.startswith("/v1/")
        and not all(content["schema"] for content in operation["responses"]["200"]["content"].values())
    ]
    assert lacking == []


def test_answers_have_the_fields_that_are_documented(openapi: dict[str, Any], api: Api) -> None:
    """An answer model that drifts from what is sent would mislead whoever reads the docs."""

    def fields(method: str, path: str) -> set[str]:
        schema = operations(openapi)[method, path]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]
        name = schema["$ref"].rsplit("/", 1)[1]
        return set(openapi["components"]["schemas"][name]["properties"])

    lease = api.post("/ai/lease", key="k").json()
    held = {"key": "k", "lease_id": lease["lease_id"]}
    assert fields("POST", "/v1/ai/lease") == set(lease) | {"result"}
    assert fields("POST", "/v1/ai/run") == set(api.post("/ai/run", key="r").json()) | {"result"}
    assert fields("POST", "/v1/check-lock") == set(api.post("/check-lock", key="k").json())
    assert fields("GET", "/v1/ai/status") == set(api.get("/ai/status", key="k").json())
    assert fields("GET", "/v1/ai/result") == set(api.get("/ai/result", key="k").json())
    assert fields("POST", "/v1/ai/extend") == set(api.post("/ai/extend", **held).json())
    assert fields("POST", "/v1/ai/complete") == set(api.post("/ai/complete", **held).json())
    for end, extra in (("fail", {"error_code": "e"}), ("cancel", {})):
        lease_id = api.post("/ai/lease", key=end).json()["lease_id"]
        answer = api.post(f"/ai/{end}", key=end, lease_id=lease_id, **extra)
        assert fields("POST", f"/v1/ai/{end}") == set(answer.json())
    for path in ("/me", "/usage", "/usage/all", "/runs"):
        assert fields("GET", f"/v1{path}") == set(api.get(path).json())
    days = {"from_day": "2026-01-01", "to_day": "2026-01-01"}
    assert fields("GET", "/v1/metrics") == set(api.get("/metrics", **days).json())
    assert fields("GET", "/v1/runs/{run_id}") == set(api.get("/runs/k").json())
    assert fields("POST", "/v1/events") == set(api.post("/events", run_id="r", type="t").json())
    assert fields("POST", "/v1/me/notifications") == set(
        api.post("/me/notifications", email_notifications_enabled=True).json()
    )
