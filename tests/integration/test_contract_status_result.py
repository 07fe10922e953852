"""GET /ai/status and GET /ai/result (§2.5, §2.6, §3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from onceonly_jobs.domain.fingerprint import result_hash

if TYPE_CHECKING:
    from tests.integration.conftest import Api

READERS = ["/ai/status", "/ai/result"]


def status_of(recent: object, **changed: Any) -> dict[str, Any]:
    """The whole field set of §2.5: no `ttl`, `usage`, `limit`, `charged`, `result` here."""
    return {
        "ok": True,
        "status": "in_progress",
        "key": "k",
        "ttl_left": None,
        "lease_id": None,
        "version": 1,
        "first_seen_at": recent,
        "done_at": None,
        "result_hash": None,
        "error_code": None,
        "retry_after_sec": None,
    } | changed


def result_of(**changed: Any) -> dict[str, Any]:
    """The whole field set of §2.6."""
    return {
        "ok": False,
        "status": "in_progress",
        "key": "k",
        "result": None,
        "result_hash": None,
        "error_code": None,
        "done_at": None,
    } | changed


def test_a_held_lease_is_in_progress(api: Api, recent: object) -> None:
    api.post("/ai/lease", key="k", ttl=1800)
    answer = api.get("/ai/status", key="k")
    ttl_left = answer.json()["ttl_left"]
    assert answer.status_code == 200
    assert answer.json() == status_of(recent, ttl_left=ttl_left, retry_after_sec=1)
    assert isinstance(ttl_left, int)
    assert 1790 <= ttl_left <= 1800
    answer = api.get("/ai/result", key="k")
    assert (answer.status_code, answer.json()) == (200, result_of())


def test_a_queued_and_a_running_run_are_in_progress(api: Api, recent: object) -> None:
    api.post("/ai/run", key="k", ttl=600)
    assert api.get("/ai/status", key="k").json() == status_of(recent, ttl_left=600, retry_after_sec=1)
    assert api.get("/ai/result", key="k").json() == result_of()
    api.claim("k")
    status = api.get("/ai/status", key="k").json()
    assert status == status_of(
        recent, ttl_left=status["ttl_left"], version=status["version"], retry_after_sec=1
    )
    assert 590 <= status["ttl_left"] <= 600
    assert api.get("/ai/result", key="k").json() == result_of()


def test_a_completed_lease(api: Api, recent: object) -> None:
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    result = {"ok": True, "text": "Ünï 😀", "n": -(2**63), "f": 0.1, "none": None, "list": [[], {}]}
    api.post("/ai/complete", key="k", lease_id=lease_id, result=result, result_hash="h")
    assert api.get("/ai/status", key="k").json() == status_of(
        recent, status="completed", version=2, done_at=recent, result_hash="h"
    )
    assert api.get("/ai/result", key="k").json() == result_of(
        ok=True, status="completed", result=result, result_hash="h", done_at=recent
    )


def test_a_completed_run(api: Api, recent: object) -> None:
    api.post("/ai/run", key="k")
    api.work("k", {"data": 1})
    digest = result_hash({"data": 1})
    status = api.get("/ai/status", key="k").json()
    assert status == status_of(
        recent, status="completed", version=status["version"], done_at=recent, result_hash=digest
    )
    assert api.get("/ai/result", key="k").json() == result_of(
        ok=True, status="completed", result={"data": 1}, result_hash=digest, done_at=recent
    )


def test_completed_without_a_result_has_a_null_result(api: Api, recent: object) -> None:
    """§2.6: `result` is available only if the owner sent one."""
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    api.post("/ai/complete", key="k", lease_id=lease_id)
    assert api.get("/ai/result", key="k").json() == result_of(ok=True, status="completed", done_at=recent)


def test_failed(api: Api, recent: object) -> None:
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    api.post("/ai/fail", key="k", lease_id=lease_id, error_code="charge_failed")
    assert api.get("/ai/status", key="k").json() == status_of(
        recent, ok=False, status="failed", version=2, done_at=recent, error_code="charge_failed"
    )
    assert api.get("/ai/result", key="k").json() == result_of(
        status="failed", error_code="charge_failed", done_at=recent
    )


def test_cancelled_reads_as_failed_with_the_code_cancelled(api: Api, recent: object) -> None:
    """§2.11: so that SDK waiters stop."""
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    api.post("/ai/cancel", key="k", lease_id=lease_id)
    assert api.get("/ai/status", key="k").json() == status_of(
        recent, ok=False, status="failed", version=2, done_at=recent, error_code="cancelled"
    )
    assert api.get("/ai/result", key="k").json() == result_of(
        status="failed", error_code="cancelled", done_at=recent
    )


@pytest.mark.parametrize("path", READERS)
def test_an_unknown_key_is_not_found(api: Api, path: str) -> None:
    answer = api.get(path, key="never seen")
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": {
            "error": "not_found",
            "message": "no run or lease under this key",
            "key": "never seen",
        }
    }


@pytest.mark.parametrize("path", READERS)
def test_a_missing_key_is_invalid(api: Api, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["type"], problem["loc"]) == ("missing", ["query", "key"])


@pytest.mark.parametrize("path", READERS)
def test_a_lock_is_no_run(api: Api, path: str) -> None:
    api.post("/check-lock", key="k")
    assert api.get(path, key="k").status_code == 404


@pytest.mark.parametrize("key", ["a b+c&d=e#f", "50%25 ünï/😀", "+", "x" * 256, "😀" * 256])
def test_keys_survive_form_encoding(api: Api, key: str) -> None:
    """§1.1: query values are form-encoded, space as `+`."""
    api.post("/ai/lease", key=key)
    for path in READERS:
        assert api.get(path, key=key).json()["key"] == key
    if " " in key:
        answer = api.request("GET", "/ai/status?key=a+b%2Bc%26d%3De%23f" if key[0] == "a" else READERS[0])
        assert answer.status_code == (200 if key[0] == "a" else 422)


def test_reading_is_not_metered(api: Api) -> None:
    api.post("/ai/lease", key="k")
    before = api.usage("ai")
    for _ in range(3):
        for path in READERS:
            api.get(path, key="k")
            api.get(path, key="unknown")
    assert api.usage("ai") == before


def test_readers_see_every_answered_complete_and_fail(api: Api) -> None:
    """§2.6: read-your-writes is mandatory: `run_fn` reads straight after complete."""
    for n in range(20):
        key = f"k{n}"
        lease_id = api.post("/ai/lease", key=key).json()["lease_id"]
        api.post("/ai/complete", key=key, lease_id=lease_id, result={"n": n})
        assert api.get("/ai/result", key=key).json()["result"] == {"n": n}
        assert api.get("/ai/status", key=key).json()["status"] == "completed"


def test_reading_a_result_is_safe_to_repeat(api: Api) -> None:
    lease_id = api.post("/ai/lease", key="k").json()["lease_id"]
    api.post("/ai/complete", key="k", lease_id=lease_id, result={"n": 1})
    assert len({api.get("/ai/result", key="k").text for _ in range(3)}) == 1
