"""POST /events, GET /events, GET /runs and GET /runs/{run_id} (§2.17 to §2.19)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from tests.integration.conftest import Api

LAST_TS = 253_402_214_400
"""The last whole second that is accepted; the year 9999 in every time zone."""


def event_of(**changed: Any) -> dict[str, Any]:
    """The whole field set of a timeline's event, §2.19."""
    return {
        "status": None,
        "duration_ms": None,
        "step": None,
        "tool": None,
        "req_id": None,
        "lease_id": None,
        "agent_id": None,
        "message": None,
        "data": {},
    } | changed


def timeline(api: Api, run_id: str, **params: Any) -> dict[str, Any]:
    body: dict[str, Any] = api.get(f"/runs/{quote(run_id, safe='')}", **params).json()
    return body


def test_an_event_begins_a_timeline_and_is_visible_at_once(api: Api) -> None:
    before = int(time.time())
    answer = api.post("/events", run_id="run_support_001", type="sdk_debug")
    assert answer.status_code == 200
    event_id = answer.json()["event_id"]
    assert answer.json() == {"ok": True, "event_id": event_id, "run_id": "run_support_001"}
    assert isinstance(event_id, int)

    seen = api.get("/runs/run_support_001").json()
    ts = seen["events"][0]["ts"]
    assert seen == {
        "run_id": "run_support_001",
        "total": 1,
        "events": [event_of(id=event_id, ts=ts, type="sdk_debug")],
    }
    assert before - 1 <= ts <= time.time() + 1


def test_every_field_of_an_event_is_kept(api: Api) -> None:
    fields = {
        "ts": 1_711_871_390,
        "type": "tool_call",
        "status": "start",
        "step": "2/3",
        "tool": "send_email",
        "req_id": "req_1",
        "lease_id": "lease_1",
        "agent_id": "support_bot",
        "message": "Ünï 😀\nsecond line",
        "duration_ms": 2**53,
        "data": {"n": -(2**63), "deep": {"list": [None, True, 0.5, "é"]}},
    }
    event_id = api.post("/events", run_id="r", **fields).json()["event_id"]
    assert timeline(api, "r")["events"] == [{"id": event_id} | fields]


def test_extra_fields_are_accepted(api: Api) -> None:
    """§2.17: the SDK forwards arbitrary extra keys."""
    answer = api.post("/events", run_id="r", type="note", custom={"a": [1]}, another=None)
    assert answer.status_code == 200
    assert timeline(api, "r")["total"] == 1


def test_a_replayed_event_is_a_second_row(api: Api) -> None:
    """§1.9: accepted."""
    first, second = (api.post("/events", run_id="r", type="note").json()["event_id"] for _ in range(2))
    assert first != second
    assert timeline(api, "r")["total"] == 2


def test_a_long_message_is_kept_whole(api: Api) -> None:
    assert api.post("/events", run_id="r", type="note", message="é" * 8192).status_code == 200
    assert timeline(api, "r")["events"][0]["message"] == "é" * 8192
    answer = api.post("/events", run_id="r", type="note", message="é" * 8193)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "message"]


@pytest.mark.parametrize("field", ["run_id", "type"])
@pytest.mark.parametrize("value", [None, "", " ", "\t\n", "\u00a0", 5, ["x"]])
def test_run_id_and_type_must_be_non_blank(api: Api, field: str, value: Any) -> None:
    answer = api.request("POST", "/events", json={"run_id": "r", "type": "note"} | {field: value})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]
    assert api.get("/runs").json()["total"] == 0


@pytest.mark.parametrize("field", ["run_id", "type"])
def test_run_id_and_type_are_required(api: Api, field: str) -> None:
    body = {"run_id": "r", "type": "note"}
    del body[field]
    answer = api.request("POST", "/events", json=body)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["type"], problem["loc"]) == ("missing", ["body", field])


@pytest.mark.parametrize(
    "run_id",
    [
        "run x/y",
        "a/b/c",
        "/lead/and/trail/",
        "//",
        "100%25 + ünï?q=1&r=2#f",
        "line\nbreak",
        "a;b,c:d@e",
        "limit",
        "x" * 256,
        "😀" * 256,
        "\u202e reversed",
    ],
)
def test_any_run_id_reaches_its_timeline_percent_encoded(api: Api, run_id: str) -> None:
    """§1.1: the route has to accept an encoded slash."""
    api.post("/events", run_id=run_id, type="note")
    seen = timeline(api, run_id)
    assert (seen["run_id"], seen["total"]) == (run_id, 1)


def test_a_run_id_with_a_bare_slash_reaches_the_same_timeline(api: Api) -> None:
    """§1.1: Python leaves some segments to URL normalisation."""
    api.post("/events", run_id="a/b c", type="note")
    assert api.get("/runs/a/b c").json()["total"] == 1


def test_an_unknown_run_has_no_events(api: Api) -> None:
    answer = api.get("/runs/nosuch")
    assert (answer.status_code, answer.json()) == (200, {"run_id": "nosuch", "total": 0, "events": []})


def test_a_timeline_is_oldest_first(api: Api) -> None:
    for ts in (300, 100, 200):
        api.post("/events", run_id="r", type=f"t{ts}", ts=ts)
    assert [event["type"] for event in timeline(api, "r")["events"]] == ["t100", "t200", "t300"]
    (head,) = api.get("/runs").json()["items"]
    assert head == {
        "run_id": "r",
        "last_ts": 300,
        "last_type": "t300",
        "last_status": None,
        "events_count": 3,
    }


def test_a_timeline_is_paged(api: Api) -> None:
    for n in range(5):
        api.post("/events", run_id="r", type=f"t{n}")
    page = timeline(api, "r", limit=2, offset=3)
    assert page["total"] == 5
    assert [event["type"] for event in page["events"]] == ["t3", "t4"]
    assert timeline(api, "r", offset=5)["events"] == []


def test_event_times_go_from_1970_to_the_end_of_9999_in_any_server_time_zone(
    serve: Callable[..., Api], owner_url: str
) -> None:
    engine = sa.create_engine(owner_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        name = sa.make_url(owner_url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone TO 'Pacific/Kiritimati'")
    api = serve()
    for ts in (0, LAST_TS):
        assert api.post("/events", run_id="r", type="note", ts=ts).status_code == 200
    assert [event["ts"] for event in timeline(api, "r")["events"]] == [0, LAST_TS]
    assert api.get("/runs").json()["items"][0]["last_ts"] == LAST_TS
    for ts in (-1, LAST_TS + 1, 2**63, 10**30):
        assert api.post("/events", run_id="r", type="note", ts=ts).status_code == 422


# GET /runs


def test_runs_are_latest_activity_first(api: Api) -> None:
    for run_id, ts in (("b", 200), ("a", 300), ("c", 100)):
        api.post("/events", run_id=run_id, type="note", status="ok", ts=ts)
    api.post("/events", run_id="c", type="done", ts=400)
    body = api.get("/runs").json()
    assert body == {
        "total": 3,
        "items": [
            {"run_id": "c", "last_ts": 400, "last_type": "done", "last_status": None, "events_count": 2},
            {"run_id": "a", "last_ts": 300, "last_type": "note", "last_status": "ok", "events_count": 1},
            {"run_id": "b", "last_ts": 200, "last_type": "note", "last_status": "ok", "events_count": 1},
        ],
    }


def test_runs_are_paged_and_total_is_of_all(api: Api) -> None:
    for n in range(5):
        api.post("/events", run_id=f"r{n}", type="note", ts=n)
    body = api.get("/runs", limit=2, offset=1).json()
    assert body["total"] == 5
    assert [item["run_id"] for item in body["items"]] == ["r3", "r2"]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("run_", {"run_a", "run_b%", "run_é"}),
        ("run_b%", {"run_b%"}),
        ("%", set()),
        ("_", set()),
        ("RUN", set()),
    ],
)
def test_q_is_a_literal_prefix(api: Api, prefix: str, found: set[str]) -> None:
    for run_id in ("run_a", "run_b%", "run_é", "other"):
        api.post("/events", run_id=run_id, type="note")
    body = api.get("/runs", q=prefix).json()
    assert {item["run_id"] for item in body["items"]} == found
    assert body["total"] == len(found)


@pytest.mark.parametrize(("path", "most"), [("/runs", 500), ("/runs/r", 2000), ("/events", 500)])
def test_list_limits_out_of_range_are_invalid(api: Api, path: str, most: int) -> None:
    """§1.6"""
    for limit in (1, most):
        assert api.get(path, limit=limit).status_code == 200
    for params in (
        {"limit": 0},
        {"limit": most + 1},
        {"limit": -1},
        {"limit": "ten"},
        {"limit": "1.5"},
        {"limit": 10**30},
        {"offset": -1},
        {"offset": 10**30},
    ):
        answer = api.get(path, **params)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["query", next(iter(params))]


def test_default_page_sizes(api: Api) -> None:
    """§1.6: 50 runs, 200 events of a timeline; §2.18: 50 of the feed."""
    for n in range(51):
        api.post("/ai/lease", key=f"k{n}")
    assert len(api.get("/runs").json()["items"]) == 50
    assert len(api.get("/events").json()) == 50
    for _ in range(201):
        api.post("/events", run_id="long", type="note")
    assert len(timeline(api, "long")["events"]) == 200


def test_runs_are_found_by_what_they_are(api: Api) -> None:
    """Additive: what an operator asks. Without these parameters, the answer is as above."""
    api.post("/ai/run", key="a:1", metadata={"run_id": "night", "agent_id": "bot"})
    api.post("/ai/run", key="a:2")
    api.work("a:2", error_code="boom")
    api.post("/ai/lease", key="b")
    head = {"run_id": "a:2", "last_type": "run_finished", "last_status": "failed", "events_count": 3}
    (found,) = api.get("/runs", state="failed").json()["items"]
    run = found.pop("run")
    assert found == head | {"last_ts": found["last_ts"]}
    assert run == {
        "key": "a:2",
        "state": "failed",
        "owner": "server",
        "job": "echo",
        "agent_id": None,
        "attempt": 1,
        "max_attempts": 3,
        "failures": 1,
        "crashes": 0,
        "max_crashes": 3,
        "progress": None,
        "error_code": "boom",
        "error_message": None,
        "first_seen_at": run["first_seen_at"],
        "due_at": run["due_at"],
        "started_at": run["started_at"],
        "done_at": run["done_at"],
    }
    for params, keys in (
        ({"state": "active"}, ["b", "a:1"]),
        ({"key": "a:"}, ["a:2", "a:1"]),
        ({"key": "a:", "state": "queued"}, ["a:1"]),
        ({"job": "echo", "limit": 1}, ["a:2"]),
        ({"agent_id": "bot"}, ["a:1"]),
        ({"key": "%"}, []),
    ):
        body = api.get("/runs", **params).json()
        assert [item["run"]["key"] for item in body["items"]] == keys
        assert body["total"] == (2 if "limit" in params else len(keys))
    (bot,) = api.get("/runs", agent_id="bot").json()["items"]
    assert (bot["run_id"], bot["events_count"]) == ("night", 1)


@pytest.mark.parametrize("params", [{"state": "odd"}, {"job": "\x00"}, {"key": "a", "q": "b"}])
def test_filters_that_can_find_nothing_are_invalid(api: Api, params: dict[str, str]) -> None:
    answer = api.get("/runs", **params)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "query"


def test_runs_of_another_namespace_are_not_found(api: Api, new_tenant: Callable[..., Api]) -> None:
    new_tenant().post("/ai/run", key="k")
    assert api.get("/runs", state="active").json() == {"total": 0, "items": []}


# GET /events


def test_the_feed_is_a_bare_array_newest_first(api: Api) -> None:
    api.post("/check-lock", key="l")
    api.post("/check-lock", key="l")
    lease_id = api.post("/ai/lease", key="k", metadata={"agent_id": "bot"}).json()["lease_id"]
    api.post("/ai/fail", key="k", lease_id=lease_id, error_code="boom")
    body = api.get("/events").json()
    assert [(e["type"], e["kind"], e["key"], e["status"], e["agent_id"], e["message"]) for e in body] == [
        ("run_finished", "ai", "k", "failed", "bot", "boom"),
        ("acquired", "ai", "k", "in_progress", "bot", None),
        ("duplicate", "make", "l", "duplicate", None, None),
    ]
    assert body[2] == {
        "id": body[2]["id"],
        "ts": body[2]["ts"],
        "type": "duplicate",
        "kind": "make",
        "key": "l",
        "status": "duplicate",
        "agent_id": None,
        "tool": None,
        "message": None,
        "data": {},
    }
    assert abs(body[2]["ts"] - time.time()) < 60


def test_the_feed_is_paged(api: Api) -> None:
    for _ in range(4):
        api.post("/check-lock", key="k")
    ids = [event["id"] for event in api.get("/events").json()]
    assert len(ids) == 3
    assert [event["id"] for event in api.get("/events", limit=1, offset=1).json()] == ids[1:2]


def test_callers_own_events_are_per_run_and_not_in_the_feed(api: Api) -> None:
    """§2.18: not per run."""
    api.post("/events", run_id="r", type="note")
    assert api.get("/events").json() == []
