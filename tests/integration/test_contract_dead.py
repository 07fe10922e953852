"""/dead over HTTP: shapes, refusals, paging, isolation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.services import claims

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

WEEK_S = 604_800


def kill(api: Api, key: str, **metadata: Any) -> None:
    """Ask for a run that becomes a dead letter, as a worker leaves it."""
    assert api.post("/ai/run", key=key, metadata=metadata).status_code == 200
    fail(api, key)


def fail(api: Api, key: str) -> None:
    ended = api.db.run(claims.fail, api.claim(key), "handler_error", "no paper", WEEK_S, dead_lettered=True)
    assert ended is claims.Ending.STORED


def documented(api: Api, method: str, path: str) -> set[str]:
    openapi = api.app.request("GET", "/openapi.json").json()
    answer = openapi["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    return set(openapi["components"]["schemas"][answer["$ref"].rsplit("/", 1)[1]]["properties"])


def test_a_dead_letter_is_listed_and_shown_as_documented(api: Api, recent: Any) -> None:
    kill(api, "report/7", size=3)
    answer = api.get("/dead")
    assert answer.status_code == 200
    assert set(answer.json()) == documented(api, "get", "/v1/dead")
    [item] = answer.json()["items"]
    assert isinstance(item["decision_id"], int)
    known = {name: value for name, value in item.items() if name not in ("decision_id", "retain_until")}
    assert known == {
        "key": "report/7",
        "run_id": "report/7",
        "task": "echo",
        "queue": "onceonly",
        "agent_id": None,
        "schedule": None,
        "attempt": 1,
        "max_attempts": item["max_attempts"],
        "failures": item["failures"],
        "crashes": 0,
        "error_code": "handler_error",
        "message": "no paper",
        "first_seen_at": recent,
        "dead_at": recent,
    }
    shown = api.get("/dead/report%2F7")
    assert shown.status_code == 200
    assert set(shown.json()) == documented(api, "get", "/v1/dead/{key}")
    body = shown.json()
    assert {name: body[name] for name in item} == item
    assert body["metadata"] == {"size": 3}
    assert isinstance(body["errors"], list)
    assert [event["type"] for event in body["events"]] == ["run_queued", "run_started", "run_finished"]


def test_the_list_is_paged_filtered_and_counts_all(api: Api) -> None:
    for key in "abc":
        kill(api, key, **({"agent_id": "bot"} if key == "b" else {}))
    pages = [api.get("/dead", limit=2, offset=offset).json() for offset in (0, 2, 4)]
    assert [[item["key"] for item in page["items"]] for page in pages] == [["a", "b"], ["c"], []]
    assert {page["total"] for page in pages} == {3}
    assert [item["key"] for item in api.get("/dead", agent_id="bot").json()["items"]] == ["b"]
    assert api.get("/dead", task="echo").json()["total"] == 3
    assert api.get("/dead", task="another").json() == {"total": 0, "items": []}


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 501}, {"offset": -1}, {"limit": "x"}])
def test_a_page_that_can_not_be_is_422(api: Api, params: dict[str, Any]) -> None:
    assert api.get("/dead", **params).status_code == 422


def test_a_replayed_run_is_in_progress_for_its_readers_and_can_be_completed(api: Api, recent: Any) -> None:
    kill(api, "k")
    assert api.get("/ai/status", key="k").json()["status"] == "failed"
    decision_id = api.get("/dead").json()["items"][0]["decision_id"]
    answer = api.post("/dead/replay", key="k", decision_id=decision_id)
    assert answer.status_code == 200
    assert set(answer.json()) == documented(api, "post", "/v1/dead/replay")
    body = answer.json()
    assert body.pop("decision_id") > decision_id
    assert body == {
        "ok": True,
        "status": "replayed",
        "key": "k",
        "run_id": "k",
        "replays": decision_id,
        "replayed_by": api.caller.key_id,
        "replayed_at": recent,
    }
    assert api.get("/ai/status", key="k").json()["status"] == "in_progress"
    assert api.get("/dead").json() == {"total": 0, "items": []}
    assert api.get("/dead/k").status_code == 404
    api.work("k", {"pages": 7})
    assert api.get("/ai/result", key="k").json()["result"] == {"pages": 7}
    assert api.post("/dead/replay", key="k", decision_id=decision_id).json() == answer.json()


def test_replays_at_once_are_answered_alike(api: Api) -> None:
    kill(api, "k")
    answers = api.at_once(8, lambda _: api.post("/dead/replay", key="k"))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert api.usage("ai")["usage"] == 1


def test_a_caller_who_waits_for_a_replayed_run_gets_its_outcome(api: Api) -> None:
    kill(api, "k")
    api.post("/dead/replay", key="k")
    attached = api.post("/ai/run", key="k").json()
    assert attached["status"] == "polling"
    assert api.get("/ai/result", key="k").json()["status"] == "in_progress"


def test_a_dead_letter_is_discarded_with_its_reason(api: Api, recent: Any) -> None:
    kill(api, "k")
    answer = api.post("/dead/discard", key="k", reason="sent by hand")
    assert answer.status_code == 200
    assert set(answer.json()) == documented(api, "post", "/v1/dead/discard")
    body = answer.json()
    assert isinstance(body.pop("decision_id"), int)
    assert body == {
        "ok": True,
        "status": "discarded",
        "key": "k",
        "run_id": "k",
        "reason": "sent by hand",
        "discarded_by": api.caller.key_id,
        "discarded_at": recent,
    }
    assert api.post("/dead/discard", key="k").json() == answer.json()
    assert api.get("/dead").json()["total"] == 0
    assert api.get("/ai/status", key="k").json()["status"] == "failed"


@pytest.mark.parametrize("what", ["replay", "discard"])
def test_what_is_no_dead_letter_is_409_and_what_is_nothing_404(api: Api, what: str) -> None:
    api.post("/ai/run", key="queued")
    refused = api.post(f"/dead/{what}", key="queued")
    assert refused.status_code == 409
    detail = refused.json()["detail"]
    assert (detail["error"], detail["reason"]) == ("dead_letter_conflict", "not_a_dead_letter")
    assert (detail["key"], detail["status"]) == ("queued", "in_progress")
    assert api.post(f"/dead/{what}", key="nothing").status_code == 404
    kill(api, "past")
    api.forget("past")
    assert api.post(f"/dead/{what}", key="past").status_code == 404


@pytest.mark.parametrize("what", ["replay", "discard"])
@pytest.mark.parametrize(
    "body", [{}, {"key": ""}, {"key": "k", "decision_id": 0}, {"key": "k", "all": True}], ids=str
)
def test_a_request_that_can_not_be_meant_is_422(api: Api, what: str, body: dict[str, Any]) -> None:
    assert api.post(f"/dead/{what}", **body).status_code == 422


def test_another_tenant_sees_and_moves_nothing(api: Api, new_tenant: NewApi) -> None:
    kill(api, "k")
    other = new_tenant()
    assert other.get("/dead").json()["total"] == 0
    assert other.get("/dead/k").status_code == 404
    assert other.post("/dead/replay", key="k").status_code == 404
    assert other.post("/dead/discard", key="k").status_code == 404
    assert api.get("/dead").json()["total"] == 1


def test_a_replay_is_decided_in_the_agents_log(api: Api) -> None:
    kill(api, "k", agent_id="bot")
    api.post("/dead/replay", key="k")
    [entry] = api.get("/agents/bot/logs", decision="replayed").json()
    assert (entry["allowed"], entry["key"], entry["actor"]) == (True, "k", api.caller.key_id)
