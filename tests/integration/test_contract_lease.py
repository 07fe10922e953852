"""POST /ai/lease (§2.2, §3)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Api

AI_LIMIT = 10_000_000
METADATA_BYTES = 65_536


def test_first_call_acquires(api: Api, a_lease_id: object, recent: object) -> None:
    answer = api.post("/ai/lease", key="support_chat_001", ttl=1800, metadata={"model": "m"})
    assert answer.status_code == 200
    assert answer.json() == {
        "ok": True,
        "status": "acquired",
        "key": "support_chat_001",
        "ttl": 1800,
        "ttl_left": None,
        "lease_id": a_lease_id,
        "version": 1,
        "first_seen_at": recent,
        "done_at": None,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": None,
        "usage": 1,
        "limit": AI_LIMIT,
        "charged": 1,
    }


def test_a_held_key_is_polling_for_everyone_and_shows_no_lease_id(api: Api, recent: object) -> None:
    """§3.2: the holder included; §7-Q7: `lease_id` is null for whoever did not acquire."""
    api.post("/ai/lease", key="k", ttl=1800)
    body = api.post("/ai/lease", key="k", ttl=60).json()
    assert 1790 <= body.pop("ttl_left") <= 1800
    assert body == {
        "ok": True,
        "status": "polling",
        "key": "k",
        "ttl": 1800,
        "lease_id": None,
        "version": 1,
        "first_seen_at": recent,
        "done_at": None,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": 1,
        "usage": 1,
        "limit": AI_LIMIT,
        "charged": 0,
    }


def finished(key: str, recent: object, **changed: Any) -> dict[str, Any]:
    return {
        "ok": True,
        "key": key,
        "ttl": 1800,
        "ttl_left": None,
        "lease_id": None,
        "version": 2,
        "first_seen_at": recent,
        "done_at": recent,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": None,
        "usage": 1,
        "limit": AI_LIMIT,
        "charged": 0,
    } | changed


def test_a_completed_key_answers_its_result(api: Api, recent: object) -> None:
    lease_id = api.post("/ai/lease", key="k", ttl=1800).json()["lease_id"]
    api.post("/ai/complete", key="k", lease_id=lease_id, result={"ok": True})
    body = api.post("/ai/lease", key="k").json()
    assert body == finished("k", recent, status="completed", result={"ok": True})


def test_a_failed_key_answers_its_code_and_no_result(api: Api, recent: object) -> None:
    lease_id = api.post("/ai/lease", key="k", ttl=1800).json()["lease_id"]
    api.post("/ai/fail", key="k", lease_id=lease_id, error_code="charge_failed")
    body = api.post("/ai/lease", key="k").json()
    assert body == finished("k", recent, ok=False, status="failed", error_code="charge_failed")


def test_a_cancelled_key_is_acquired_again_and_charged(api: Api, a_lease_id: object, recent: object) -> None:
    """§3.2: held, version +1; first_seen_at is kept."""
    first = api.post("/ai/lease", key="k", ttl=60).json()
    cancelled = api.post("/ai/cancel", key="k", lease_id=first["lease_id"]).json()
    again = api.post("/ai/lease", key="k", ttl=90).json()
    assert again == {
        "ok": True,
        "status": "acquired",
        "key": "k",
        "ttl": 90,
        "ttl_left": None,
        "lease_id": a_lease_id,
        "version": cancelled["version"] + 1,
        "first_seen_at": first["first_seen_at"],
        "done_at": None,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": None,
        "usage": 2,
        "limit": AI_LIMIT,
        "charged": 1,
    }
    assert again["lease_id"] != first["lease_id"]


def test_of_concurrent_calls_exactly_one_acquires(api: Api) -> None:
    bodies = [answer.json() for answer in api.at_once(32, lambda _: api.post("/ai/lease", key="race"))]
    assert Counter(body["status"] for body in bodies) == {"acquired": 1, "polling": 31}
    assert len([body for body in bodies if body["lease_id"]]) == 1
    assert sum(body["charged"] for body in bodies) == 1


def test_lease_ids_differ_per_acquisition(api: Api) -> None:
    lease_ids = {api.post("/ai/lease", key=f"k{n}").json()["lease_id"] for n in range(5)}
    assert len(lease_ids) == 5


def test_acquired_is_charged_and_attaching_is_not(api: Api) -> None:
    """§2.2 metering: every attempt is a request; only `polling` answers count as polling."""
    lease_id = api.post("/ai/lease", key="a").json()["lease_id"]
    api.post("/ai/lease", key="b")
    api.post("/ai/lease", key="a")
    api.post("/ai/complete", key="a", lease_id=lease_id)
    api.post("/ai/lease", key="a")
    assert api.usage("ai") == {
        "usage": 2,
        "limit": AI_LIMIT,
        "requests_total_month": 4,
        "blocked_total_month": 0,
        "charged_total_month": 2,
        "polling_total_month": 1,
    }
    assert api.usage("make")["requests_total_month"] == 0


def test_usage_in_the_answer_is_the_month_to_date(api: Api) -> None:
    assert [api.post("/ai/lease", key=key).json()["usage"] for key in ("a", "b", "a", "c")] == [1, 2, 2, 3]


def test_another_fingerprint_under_the_same_key_is_a_mismatch(api: Api) -> None:
    """Never somebody else's answer: not while held, not when finished."""
    first = api.post("/ai/lease", key="k", fingerprint="one").json()
    mismatch = {
        "detail": {
            "error": "fingerprint_mismatch",
            "message": "this key was used for a different request",
            "key": "k",
        }
    }
    for path in ("/ai/lease", "/ai/run"):
        answer = api.post(path, key="k", fingerprint="two")
        assert (answer.status_code, answer.json()) == (409, mismatch)
    api.post("/ai/complete", key="k", lease_id=first["lease_id"], result={"secret": 1})
    answer = api.post("/ai/lease", key="k", fingerprint="two")
    assert (answer.status_code, answer.json()) == (409, mismatch)
    assert api.post("/ai/lease", key="k", fingerprint="one").json()["status"] == "completed"
    assert api.post("/ai/lease", key="k").json()["status"] == "completed"
    assert api.usage("ai")["usage"] == 1


def test_metadata_may_have_64_kib_as_compact_json_and_no_more(api: Api) -> None:
    filler = METADATA_BYTES - len(b'{"x":""}')
    for path in ("/ai/lease", "/ai/run"):
        assert api.post(path, key=path, metadata={"x": "y" * filler}).status_code == 200
        assert api.post(path, key=f"{path}2", metadata={"x": "y" * (filler + 1)}).status_code == 422


def test_a_lease_begins_a_timeline_under_its_key_or_run_id(api: Api) -> None:
    api.post("/ai/lease", key="plain")
    api.post("/ai/lease", key="named", metadata={"run_id": "chat", "agent_id": "support_bot"})
    (plain,) = api.get("/runs/plain").json()["events"]
    (named,) = api.get("/runs/chat").json()["events"]
    assert (plain["type"], plain["status"], plain["agent_id"]) == ("run_started", "started", None)
    assert (named["type"], named["status"], named["agent_id"]) == ("run_started", "started", "support_bot")
    assert api.get("/runs/named").json()["total"] == 0


@pytest.mark.parametrize("field", ["run_id", "agent_id"])
@pytest.mark.parametrize("value", [5, "", " ", "x" * 257, ["a"]])
def test_metadata_that_the_server_acts_on_must_be_usable(api: Api, field: str, value: Any) -> None:
    for path in ("/ai/lease", "/ai/run"):
        answer = api.post(path, key="k", metadata={field: value})
        assert answer.status_code == 422
        assert f"metadata.{field}" in answer.json()["detail"][0]["msg"]
    assert api.rows("runs") == 0


def test_other_metadata_is_free_form(api: Api) -> None:
    metadata = {"task": 5, "dry_run": "maybe", "n": 1e308, "deep": {"x": [None, True, "é"]}}
    assert api.post("/ai/lease", key="k", metadata=metadata).json()["status"] == "acquired"
