"""/schedules over HTTP: made, read, changed, stopped and run; what can't be used is refused in clear words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import claims

if TYPE_CHECKING:
    from tests.integration.conftest import Api, NewApi

DEFAULTS: dict[str, Any] = {
    "name": "s",
    "status": "active",
    "task": None,
    "cron": None,
    "every_s": None,
    "at": None,
    "tz": "UTC",
    "start_at": None,
    "end_at": None,
    "payload": None,
    "metadata": None,
    "agent_id": None,
    "queue": None,
    "ttl": None,
    "misfire": "once",
    "misfire_grace_s": 5,
    "catch_up_limit": 100,
    "jitter_s": 0,
    "overlap": "allow",
    "last_tick_at": None,
    "paused_at": None,
    "origin": "api",
    "edited": [],
    "version": 1,
}


@pytest.fixture(autouse=True)
def _job(api: Api) -> None:
    api.db.run(claims.announce, [JobSpec(name="report", queue="reports")])


def make(api: Api, name: str = "s", **fields: Any) -> dict[str, Any]:
    answer = api.post("/schedules", name=name, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_schedule_is_made_and_read_back(api: Api, recent: Any) -> None:
    given = {
        "task": "report",
        "cron": "30 6 * * MON-FRI",
        "tz": "Europe/Kyiv",
        "start_at": "2199-03-01T00:00:00",  # without an offset: by the clock of tz
        "end_at": "2199-03-31T23:59:59.9Z",
        "payload": {"day": 1},
        "metadata": {"team": "a"},
        "agent_id": "robot",
        "queue": "reports",
        "ttl": 90,
        "misfire": "catch_up",
        "misfire_grace_s": 1,
        "catch_up_limit": 7,
        "jitter_s": 9,
        "overlap": "skip",
    }
    made = make(api, **given)
    who = {"created_by": api.caller.key_id, "updated_by": api.caller.key_id}
    assert made == {
        **DEFAULTS,
        **given,
        **who,
        "start_at": "2199-02-28T22:00:00Z",
        "end_at": "2199-03-31T23:59:59Z",
        "next_tick_at": "2199-03-01T04:30:00Z",
        "created_at": recent,
        "updated_at": recent,
    }
    assert api.get("/schedules/s").json() == made
    assert api.get("/schedules").json() == {"total": 1, "items": [made]}
    assert api.post("/schedules", name="s", **given).json() == made


def test_the_least_that_can_be_said(api: Api, recent: Any) -> None:
    made = make(api, every_s=3600)
    assert {name: made[name] for name in DEFAULTS} == {**DEFAULTS, "every_s": 3600}
    assert make(api, "once", at="2199-01-01T00:00:00Z")["next_tick_at"] == "2199-01-01T00:00:00Z"
    assert make(api, "macro", cron="@daily", paused=True)["status"] == "paused"
    assert make(api, "seconds", cron="*/10 * * * * *")["next_tick_at"][-2:] == "0Z"


@pytest.mark.parametrize(
    ("fields", "loc", "words"),
    [
        ({"cron": "61 * * * *"}, ["body", "cron"], "Bad minute"),
        ({"cron": "every day"}, ["body", "cron"], "is no cron expression"),
        ({"cron": "@reboot"}, ["body", "cron"], "unknown macro"),
        ({"cron": "0 0 31 2 *"}, ["body", "cron"], "Bad day-of-month"),
        ({"cron": "@daily", "tz": "Mars/Olympus"}, ["body", "tz"], "unknown time zone 'Mars/Olympus'"),
        ({"cron": "@daily", "tz": "/etc/passwd"}, ["body", "tz"], "unknown time zone"),
        ({"cron": "@daily", "tz": "UTC\u00b2"}, ["body", "tz"], "unknown time zone"),
        (
            {"cron": "@daily", "start_at": "2199-02-01", "end_at": "2199-01-01"},
            ["body", "end_at"],
            "before start_at",
        ),
        ({"cron": "@daily", "end_at": "2020-01-01"}, ["body", "end_at"], "no tick after now"),
        ({"at": "2020-01-01T00:00:00Z"}, ["body", "at"], "no tick after now"),
        ({"at": "tomorrow"}, ["body", "at"], "ISO 8601"),
        ({"at": 1800000000}, ["body", "at"], "ISO 8601"),
        ({"at": "9999-12-31T23:59:59Z"}, ["body", "at"], "from the year 1970 to 2200"),
        ({"every_s": 0}, ["body", "every_s"], "greater than or equal to 1"),
        ({"every_s": 0.5}, ["body", "every_s"], "valid integer"),
        ({"every_s": 10**12}, ["body", "every_s"], "less than or equal"),
        ({}, ["body"], "give one of cron, every_s and at"),
        ({"every_s": 5, "cron": "@daily"}, ["body"], "give only one of cron, every_s and at"),
        ({"every_s": 5, "overlaps": "skip"}, ["body", "overlaps"], "Extra inputs are not permitted"),
        ({"every_s": 5, "misfire": "twice"}, ["body", "misfire"], "'skip', 'once' or 'catch_up'"),
        ({"every_s": 5, "catch_up_limit": 1001}, ["body", "catch_up_limit"], "less than or equal"),
        ({"every_s": 5, "queue": "unacked"}, ["body", "queue"], "no registered job uses this queue"),
        ({"every_s": 5, "metadata": {"task": "x"}}, ["body", "metadata"], "own fields"),
        ({"every_s": 5, "metadata": {"spend_usd": -1}}, ["body", "metadata"], "spend_usd"),
        ({"every_s": 5, "payload": {"x": "y" * 40_000}}, ["body", "payload"], "at most 30720"),
        (
            {"every_s": 5, "metadata": {"actions": [{"tool": "x"}]}},
            ["body", "metadata"],
            "actions need metadata.agent_id",
        ),
        ({"every_s": 5, "agent_id": "a", "metadata": {"actions": [{}]}}, ["body", "metadata"], "required"),
        ({"every_s": 5, "name": "a b"}, ["body", "name"], "pattern"),
        ({"every_s": 5, "name": "../up"}, ["body", "name"], "pattern"),
        ({"every_s": 5, "name": "x" * 201}, ["body", "name"], "at most 200"),
    ],
)
def test_what_can_not_be_used_is_said(api: Api, fields: dict[str, Any], loc: list[str], words: str) -> None:
    answer = api.post("/schedules", **{"name": "s", **fields})
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == loc
    assert words in problem["msg"]
    assert api.get("/schedules").json()["total"] == 0


def test_an_unknown_task_is_told_as_by_run(api: Api) -> None:
    answer = api.post("/schedules", name="s", every_s=5, task="nobody")
    as_by_run = api.post("/ai/run", key="k", metadata={"task": "nobody"})
    assert (answer.status_code, answer.json()) == (400, as_by_run.json())


def test_another_schedule_of_that_name_is_refused(api: Api) -> None:
    make(api, every_s=5)
    answer = api.post("/schedules", name="s", every_s=6)
    assert (answer.status_code, answer.json()["detail"]["error"]) == (409, "schedule_exists")
    assert api.get("/schedules/s").json()["every_s"] == 5


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"tz": "UTC"}),
        ("DELETE", "", None),
        ("POST", "/pause", None),
        ("POST", "/resume", None),
        ("POST", "/trigger", None),
        ("POST", "/backfill", {"from": "2026-01-01", "to": "2026-01-02"}),
        ("GET", "/next", None),
        ("GET", "/ticks", None),
    ],
)
def test_a_schedule_of_somebody_else_is_not_there(
    api: Api, new_tenant: NewApi, method: str, path: str, body: Any
) -> None:
    other = new_tenant()
    make(other, cron="@daily")
    answer = api.request(method, f"/schedules/s{path}", json=body)
    assert (answer.status_code, answer.json()["detail"]["error"]) == (404, "schedule_not_found")
    assert other.get("/schedules/s").json()["version"] == 1


def test_a_change_says_what_changes_and_leaves_the_rest(api: Api) -> None:
    made = make(api, cron="@daily", end_at="2199-01-01", payload={"a": 1})
    changed = api.request("PATCH", "/schedules/s", json={"tz": "Asia/Tokyo", "end_at": None}).json()
    assert changed["next_tick_at"][11:] == "15:00:00Z"
    same = set(made) - {"tz", "end_at", "next_tick_at", "version", "updated_at"}
    assert {name: changed[name] for name in same} == {name: made[name] for name in same}
    assert (changed["end_at"], changed["version"]) == (None, 2)
    assert api.request("PATCH", "/schedules/s", json={"every_s": 60}).json()["cron"] is None
    for wrong in ({"endat": None}, {"name": "x"}, {"cron": "x"}, {"every_s": None}, {"paused": True}):
        answer = api.request("PATCH", "/schedules/s", json=wrong)
        assert answer.status_code == 422, wrong
    assert api.get("/schedules/s").json()["version"] == 3
    assert api.request("PATCH", "/schedules/s", content=b"{").status_code == 422
    assert api.request("PATCH", "/schedules/s", content=b'{"x": "' + b"y" * 3_000_000).status_code == 413


def test_pause_and_resume_may_be_repeated(api: Api, recent: Any) -> None:
    make(api, every_s=3600)
    for _ in range(2):
        paused = api.post("/schedules/s/pause").json()
        assert (paused["status"], paused["paused_at"], paused["version"]) == ("paused", recent, 2)
    for _ in range(2):
        resumed = api.post("/schedules/s/resume").json()
        assert (resumed["status"], resumed["paused_at"], resumed["version"]) == ("active", None, 3)


def test_deleting_is_for_good(api: Api) -> None:
    make(api, every_s=3600)
    answer = api.request("DELETE", "/schedules/s")
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "deleted": "s"})
    assert api.request("DELETE", "/schedules/s").status_code == 404
    assert make(api, every_s=60)["version"] == 1


def test_the_next_ticks_around_a_clock_change(api: Api) -> None:
    make(api, cron="30 3 * * *", tz="Europe/Kyiv", start_at="2027-03-27", jitter_s=60)
    body = api.get("/schedules/s/next", n=3).json()
    assert [item["local"] for item in body["items"]] == [
        "2027-03-27T03:30:00+02:00",
        "2027-03-28T04:00:00+03:00",
        "2027-03-29T03:30:00+03:00",
    ]
    first = body["items"][0]
    assert (first["tick"], first["key"]) == ("2027-03-27T01:30:00Z", "cron:s:2027-03-27T01:30:00Z")
    assert first["tick"] <= first["due_at"] < "2027-03-27T01:31:00Z"
    assert api.get("/schedules/s/next").json()["items"][9]
    assert api.get("/schedules/s/next", n=101).status_code == 422
    make(api, "once", at="2199-01-01")
    assert len(api.get("/schedules/once/next").json()["items"]) == 1


def test_a_trigger_is_a_run_like_any_other(api: Api, a_lease_id: Any) -> None:
    make(api, every_s=3600, task="report", payload={"a": 1})
    used = api.usage("ai")["charged_total_month"]
    first = api.post("/schedules/s/trigger", id="one").json()
    assert (first["status"], first["key"], first["lease_id"]) == ("acquired", "trigger:s:one", a_lease_id)
    again = api.post("/schedules/s/trigger", id="one").json()
    assert (again["status"], again["lease_id"]) == ("polling", None)
    assert api.usage("ai")["charged_total_month"] == used + 1
    assert api.get("/ai/status", key="trigger:s:one").json()["status"] == "in_progress"
    by_time = api.request("POST", "/schedules/s/trigger").json()
    assert by_time["key"].startswith("trigger:s:2")
    for wrong in ({"id": "a:b"}, {"id": ""}, {"idd": "x"}):
        assert api.post("/schedules/s/trigger", **wrong).status_code == 422
    items = api.get("/schedules/s/ticks").json()["items"]
    assert {(item["state"], item["source"]) for item in items} == {("fired", "trigger")}


def test_a_backfill_makes_up_for_a_past_range(api: Api, recent: Any) -> None:
    make(api, cron="0 * * * *")
    now = datetime.now(UTC)
    span = {"from": (now - timedelta(hours=5)).isoformat(), "to": (now - timedelta(hours=1)).isoformat()}
    first = api.post("/schedules/s/backfill", **span).json()
    assert (first["ok"], first["ticks"], first["created"], first["existing"]) == (True, 4, 4, 0)
    assert first["keys"] == sorted(first["keys"])
    again = api.post("/schedules/s/backfill", **span).json()
    assert (again["created"], again["existing"], again["keys"]) == (0, 4, first["keys"])
    items = api.get("/schedules/s/ticks").json()["items"]
    assert [item["key"] for item in items] == first["keys"][::-1]
    assert items[0] == {
        "tick": first["keys"][-1].removeprefix("cron:s:"),
        "key": first["keys"][-1],
        "state": "fired",
        "source": "backfill",
        "detail": None,
        "recorded_at": recent,
    }
    assert len(api.get("/schedules/s/ticks", limit=1, offset=1).json()["items"]) == 1


@pytest.mark.parametrize(
    ("span", "loc"),
    [
        ({"from": "2026-01-02", "to": "2026-01-01"}, "to"),
        ({"from": "2026-01-02", "to": "2199-01-01"}, "to"),
        ({"from": "1999-01-02", "to": "2026-01-01"}, "to"),
        ({"from": "2026-01-01"}, "to"),
        ({"from": "x", "to": "2026-01-01"}, "from"),
        ({"from": "2026-01-01", "to": "2026-01-02", "until": 1}, "until"),
    ],
)
def test_a_backfill_that_can_not_be_is_refused(api: Api, span: dict[str, Any], loc: str) -> None:
    make(api, cron="0 * * * *")
    answer = api.post("/schedules/s/backfill", **span)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", loc]
    assert api.rows("runs") == 0


def test_a_used_up_quota_refuses_trigger_and_backfill(new_tenant: NewApi) -> None:
    api = new_tenant(Plan.FREE)
    make(api, cron="0 * * * *")
    api.use_up("ai", 3000)
    span = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T03:00:00Z"}
    for path, body in (("trigger", {}), ("backfill", span)):
        answer = api.post(f"/schedules/s/{path}", **body)
        assert (answer.status_code, answer.json()["detail"]["error"]) == (402, "payment_required")
    assert api.rows("runs") == 0


def test_schedules_are_listed_by_name_in_pages(api: Api) -> None:
    for name in ("b", "a", "c"):
        make(api, name, every_s=60)
    page = api.get("/schedules", limit=2, offset=1).json()
    assert (page["total"], [item["name"] for item in page["items"]]) == (3, ["b", "c"])


def test_answers_have_the_fields_that_are_documented(api: Api) -> None:
    schemas = api.app.request("GET", "/openapi.json").json()["components"]["schemas"]
    made = make(api, cron="0 * * * *")
    span = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}
    backfill = api.post("/schedules/s/backfill", **span).json()
    seen = {
        "ScheduleAnswer": made,
        "BackfillAnswer": backfill,
        "NextTick": api.get("/schedules/s/next").json()["items"][0],
        "TickItem": api.get("/schedules/s/ticks").json()["items"][0],
    }
    for model, body in seen.items():
        assert set(schemas[model]["properties"]) == set(body)
