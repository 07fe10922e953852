"""POST /ai/extend, /ai/complete, /ai/fail, /ai/cancel on a caller's lease (§2.7 to §2.11, §1.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Api

EVERY = {
    "/ai/extend": {"ttl": 60},
    "/ai/complete": {"result": {"x": 1}},
    "/ai/fail": {"error_code": "boom"},
    "/ai/cancel": {"reason": "because"},
}


def held(api: Api, key: str = "k", ttl: int = 1800) -> str:
    lease_id: str = api.post("/ai/lease", key=key, ttl=ttl).json()["lease_id"]
    return lease_id


def conflict(reason: str, status: str, version: int) -> dict[str, Any]:
    message = {
        "not_owner": "lease is held by another caller",
        "finished": "the run is already finished",
    }[reason]
    return {
        "detail": {
            "error": "lease_conflict",
            "reason": reason,
            "message": message,
            "key": "k",
            "status": status,
            "version": version,
        }
    }


# extend


def test_extend_sets_the_deadline_and_does_not_add(api: Api) -> None:
    lease_id = held(api)
    answer = api.post("/ai/extend", key="k", lease_id=lease_id, ttl=300)
    assert answer.status_code == 200
    assert answer.json() == {"ok": True, "status": "extended", "key": "k", "ttl": 300, "version": 2}
    assert 290 <= api.get("/ai/status", key="k").json()["ttl_left"] <= 300
    assert api.post("/ai/extend", key="k", lease_id=lease_id, ttl=300).json()["version"] == 3
    assert 290 <= api.get("/ai/status", key="k").json()["ttl_left"] <= 300


def test_extend_without_ttl_repeats_the_leases_own(api: Api) -> None:
    lease_id = held(api, ttl=120)
    assert api.post("/ai/extend", key="k", lease_id=lease_id).json()["ttl"] == 120
    api.post("/ai/extend", key="k", lease_id=lease_id, ttl=240)
    assert api.post("/ai/extend", key="k", lease_id=lease_id).json()["ttl"] == 240


def test_extend_is_not_metered(api: Api) -> None:
    lease_id = held(api)
    before = api.usage("ai")
    api.post("/ai/extend", key="k", lease_id=lease_id)
    api.post("/ai/complete", key="k", lease_id=lease_id)
    assert api.usage("ai") == before


# complete


def test_complete_stores_result_and_hash_as_given(api: Api, recent: object) -> None:
    lease_id = held(api)
    answer = api.post("/ai/complete", key="k", lease_id=lease_id, result={"a": 1}, result_hash="sha:abc")
    assert answer.status_code == 200
    assert answer.json() == {
        "ok": True,
        "status": "completed",
        "key": "k",
        "version": 2,
        "done_at": recent,
        "result_hash": "sha:abc",
    }
    assert api.get("/ai/result", key="k").json()["result"] == {"a": 1}


def test_complete_needs_no_result(api: Api, recent: object) -> None:
    lease_id = held(api)
    answer = api.post("/ai/complete", key="k", lease_id=lease_id)
    assert answer.json() == {
        "ok": True,
        "status": "completed",
        "key": "k",
        "version": 2,
        "done_at": recent,
        "result_hash": None,
    }


def test_a_repeated_complete_answers_the_same_and_keeps_the_first_result(api: Api) -> None:
    """§1.9, §2.9: every POST must be replay-safe."""
    lease_id = held(api)
    first = api.post("/ai/complete", key="k", lease_id=lease_id, result={"n": 1}, result_hash="one")
    again = api.post("/ai/complete", key="k", lease_id=lease_id, result={"n": 2}, result_hash="two")
    assert (again.status_code, again.json()) == (200, first.json())
    assert api.get("/ai/result", key="k").json()["result"] == {"n": 1}
    assert api.get("/runs/k").json()["total"] == 2


def test_of_concurrent_completes_one_result_is_kept_and_all_are_answered(api: Api) -> None:
    lease_id = held(api)
    answers = api.at_once(16, lambda n: api.post("/ai/complete", key="k", lease_id=lease_id, result={"n": n}))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len({api.get("/ai/result", key="k").text for _ in range(5)}) == 1
    assert [event["type"] for event in api.get("/runs/k").json()["events"]] == ["run_started", "run_finished"]


def test_a_fail_after_a_complete_does_not_change_the_outcome(api: Api) -> None:
    """§2.9: both SDKs send it when the complete call raised."""
    lease_id = held(api)
    api.post("/ai/complete", key="k", lease_id=lease_id, result={"n": 1})
    answer = api.post("/ai/fail", key="k", lease_id=lease_id, error_code="fn_error")
    assert (answer.status_code, answer.json()) == (409, conflict("finished", "completed", 2))
    assert api.get("/ai/result", key="k").json()["result"] == {"n": 1}
    assert api.get("/ai/status", key="k").json()["error_code"] is None


def test_a_complete_of_a_failed_lease_is_refused(api: Api) -> None:
    lease_id = held(api)
    api.post("/ai/fail", key="k", lease_id=lease_id, error_code="boom")
    answer = api.post("/ai/complete", key="k", lease_id=lease_id, result={"n": 1})
    assert (answer.status_code, answer.json()) == (409, conflict("finished", "failed", 2))
    assert api.get("/ai/result", key="k").json()["result"] is None


def test_complete_leaves_a_timeline_and_a_feed_entry(api: Api) -> None:
    lease_id = held(api)
    api.post("/ai/complete", key="k", lease_id=lease_id)
    last = api.get("/runs/k").json()["events"][-1]
    assert (last["type"], last["status"], last["message"]) == ("run_finished", "completed", None)
    newest = api.get("/events").json()[0]
    assert (newest["type"], newest["kind"], newest["key"], newest["status"]) == (
        "run_finished",
        "ai",
        "k",
        "completed",
    )


def test_a_result_larger_than_the_limit_is_refused_clearly_and_the_lease_kept(api: Api) -> None:
    lease_id = held(api)
    answer = api.post("/ai/complete", key="k", lease_id=lease_id, result={"x": "y" * 1_048_576})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", "result"]
    assert "1048576" in problem["msg"]
    assert api.post("/ai/complete", key="k", lease_id=lease_id, result={"ok": 1}).status_code == 200


def test_a_result_just_within_the_limit_is_kept(api: Api) -> None:
    lease_id = held(api)
    result = {"x": "y" * (1_048_576 - len('{"x":""}'))}
    assert api.post("/ai/complete", key="k", lease_id=lease_id, result=result).status_code == 200
    assert api.get("/ai/result", key="k").json()["result"] == result


# fail


def test_fail_is_final(api: Api, recent: object) -> None:
    lease_id = held(api)
    answer = api.post("/ai/fail", key="k", lease_id=lease_id, error_code="charge_failed", error_hash="h")
    assert answer.status_code == 200
    assert answer.json() == {
        "ok": True,
        "status": "failed",
        "key": "k",
        "version": 2,
        "error_code": "charge_failed",
        "done_at": recent,
    }
    assert api.post("/ai/lease", key="k").json()["status"] == "failed"


def test_a_repeated_fail_answers_the_same_and_keeps_the_first_code(api: Api) -> None:
    lease_id = held(api)
    first = api.post("/ai/fail", key="k", lease_id=lease_id, error_code="one")
    again = api.post("/ai/fail", key="k", lease_id=lease_id, error_code="two")
    assert (again.status_code, again.json()) == (200, first.json())
    assert api.get("/ai/status", key="k").json()["error_code"] == "one"


# cancel


def test_cancel_gives_the_lease_up(api: Api) -> None:
    lease_id = held(api)
    answer = api.post("/ai/cancel", key="k", lease_id=lease_id, reason="no longer wanted")
    assert answer.status_code == 200
    assert answer.json() == {"ok": True, "status": "cancelled", "key": "k", "version": 2}


def test_a_repeated_cancel_answers_the_same(api: Api) -> None:
    lease_id = held(api)
    first = api.post("/ai/cancel", key="k", lease_id=lease_id)
    again = api.post("/ai/cancel", key="k", lease_id=lease_id)
    assert (again.status_code, again.json()) == (200, first.json())


@pytest.mark.parametrize("path", ["/ai/extend", "/ai/complete", "/ai/fail"])
def test_after_a_cancel_the_lease_is_finished(api: Api, path: str) -> None:
    lease_id = held(api)
    api.post("/ai/cancel", key="k", lease_id=lease_id)
    answer = api.post(path, key="k", lease_id=lease_id, **EVERY[path])
    assert (answer.status_code, answer.json()) == (409, conflict("finished", "failed", 2))


@pytest.mark.parametrize("finish", ["/ai/complete", "/ai/fail"])
def test_a_finished_lease_cannot_be_cancelled_or_extended(api: Api, finish: str) -> None:
    lease_id = held(api)
    status = api.post(finish, key="k", lease_id=lease_id, **EVERY[finish]).json()["status"]
    for path in ("/ai/cancel", "/ai/extend"):
        answer = api.post(path, key="k", lease_id=lease_id, **EVERY[path])
        assert (answer.status_code, answer.json()) == (409, conflict("finished", status, 2))


# all of them


@pytest.mark.parametrize("path", EVERY)
def test_a_wrong_lease_id_is_not_owner_and_discloses_no_lease_id(api: Api, path: str) -> None:
    lease_id = held(api)
    for wrong in ("lease_nosuch", lease_id.lower() + "x", lease_id[:-1], "*", "%"):
        answer = api.post(path, key="k", lease_id=wrong, **EVERY[path])
        assert (answer.status_code, answer.json()) == (409, conflict("not_owner", "in_progress", 1))
        assert lease_id not in answer.text
    assert api.get("/ai/status", key="k").json()["status"] == "in_progress"


@pytest.mark.parametrize("path", EVERY)
def test_an_old_lease_id_is_not_owner_after_the_key_was_acquired_anew(api: Api, path: str) -> None:
    old = held(api)
    api.post("/ai/cancel", key="k", lease_id=old)
    new = held(api)
    answer = api.post(path, key="k", lease_id=old, **EVERY[path])
    assert (answer.status_code, answer.json()) == (409, conflict("not_owner", "in_progress", 3))
    assert api.post("/ai/complete", key="k", lease_id=new, result={"by": "new"}).status_code == 200
    answer = api.post(path, key="k", lease_id=old, **EVERY[path])
    assert (answer.status_code, answer.json()) == (409, conflict("not_owner", "completed", 4))


@pytest.mark.parametrize("path", EVERY)
def test_an_unknown_key_is_not_found(api: Api, path: str) -> None:
    answer = api.post(path, key="nosuch", lease_id="lease_x", **EVERY[path])
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": {"error": "not_found", "message": "no run or lease under this key", "key": "nosuch"}
    }


@pytest.mark.parametrize("path", EVERY)
def test_key_and_lease_id_are_required(api: Api, path: str) -> None:
    answer = api.request("POST", path, json={})
    assert answer.status_code == 422
    missing = {tuple(problem["loc"]) for problem in answer.json()["detail"] if problem["type"] == "missing"}
    assert {("body", "key"), ("body", "lease_id")} <= missing
    assert (("body", "error_code") in missing) == (path == "/ai/fail")
