"""POST /check-lock (§2.1)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from tests.integration.conftest import Api

LOCK_METADATA_BYTES = 2048


def locked(key: str, ttl: int) -> dict[str, Any]:
    return {"success": True, "status": "locked", "key": key, "ttl": ttl, "first_seen_at": None}


def duplicate(key: str, ttl: int, first_seen_at: Any) -> dict[str, Any]:
    return {
        "success": False,
        "status": "duplicate",
        "key": key,
        "ttl": ttl,
        "first_seen_at": first_seen_at,
    }


def metadata_of(size: int) -> dict[str, str]:
    """An object of exactly so many bytes as compact UTF-8 JSON, half of them in 2-byte characters."""
    filler = size - len('{"é":""}'.encode())
    return {"é": "é" * (filler // 2) + "x" * (filler % 2)}


def test_first_call_is_locked(api: Api) -> None:
    answer = api.post("/check-lock", key="payment_invoice_123", ttl=3600)
    assert answer.status_code == 200
    assert answer.json() == locked("payment_invoice_123", 3600)
    assert answer.headers["X-OnceOnly-Status"] == "locked"


def test_second_call_is_a_duplicate_and_tells_when_the_first_was(api: Api, recent: object) -> None:
    api.post("/check-lock", key="payment_invoice_123", ttl=3600)
    answer = api.post("/check-lock", key="payment_invoice_123", ttl=3600)
    assert answer.status_code == 200
    assert answer.json() == duplicate("payment_invoice_123", 3600, recent)
    assert answer.headers["X-OnceOnly-Status"] == "duplicate"


def test_duplicate_status_code_409_answers_duplicates_with_409(
    serve: Callable[..., Api], recent: object
) -> None:
    api = serve(duplicate_status_code=409)
    first = api.post("/check-lock", key="k")
    assert (first.status_code, first.json()["status"]) == (200, "locked")
    answer = api.post("/check-lock", key="k")
    assert answer.status_code == 409
    assert answer.json() == {"detail": {"error": "Duplicate blocked", "first_seen_at": recent}}
    assert answer.headers["X-OnceOnly-Status"] == "duplicate"
    assert api.usage("make")["usage"] == 1


def test_of_concurrent_calls_exactly_one_is_locked(api: Api) -> None:
    answers = api.at_once(32, lambda _: api.post("/check-lock", key="race", ttl=60))
    assert {answer.status_code for answer in answers} == {200}
    assert Counter(answer.json()["status"] for answer in answers) == {"locked": 1, "duplicate": 31}
    assert Counter(answer.headers["X-OnceOnly-Status"] for answer in answers) == {
        "locked": 1,
        "duplicate": 31,
    }
    assert api.usage("make")["requests_total_month"] == 32
    assert api.usage("make")["usage"] == 31


def test_other_metadata_or_ttl_is_still_a_duplicate_with_the_holders_ttl(api: Api, recent: object) -> None:
    api.post("/check-lock", key="k", ttl=100, metadata={"a": 1})
    assert api.post("/check-lock", key="k", ttl=900, metadata={"b": 2}).json() == duplicate("k", 100, recent)


def test_metadata_is_stored_for_audit(api: Api) -> None:
    metadata = {"user": "Ünïcode 😀", "deep": [{"n": 2**63 - 1}], "none": None}
    api.post("/check-lock", key="k", metadata=metadata)
    query = sa.text("SELECT metadata FROM locks WHERE tenant_id = :tenant_id AND key = 'k'")
    with api.db.engine.connect() as connection:
        assert connection.execute(query, {"tenant_id": api.tenant_id}).scalar_one() == metadata


def test_metadata_may_have_2048_bytes_as_compact_json_and_no_more(api: Api) -> None:
    """§1.6: measured as compact UTF-8 JSON, whatever spaces it was sent with."""
    biggest = metadata_of(LOCK_METADATA_BYTES)
    spaced = json.dumps({"key": "spaced", "metadata": biggest}, indent=8)
    assert len(json.dumps(biggest, ensure_ascii=False, separators=(",", ":")).encode()) == LOCK_METADATA_BYTES
    assert api.request("POST", "/check-lock", content=spaced).status_code == 200

    answer = api.post("/check-lock", key="larger", metadata=metadata_of(LOCK_METADATA_BYTES + 1))
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "metadata"]
    assert "2049 bytes" in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize("key", ["x" * 256, "😀" * 256, " ", "a/b?c#d%20e", "line\nbreak", "\u202e"])
def test_a_key_is_any_text_of_1_to_256_code_points(api: Api, key: str) -> None:
    assert api.post("/check-lock", key=key, ttl=60).json() == locked(key, 60)
    assert api.post("/check-lock", key=key, ttl=60).json()["status"] == "duplicate"


def test_keys_are_case_sensitive_and_not_trimmed_or_normalised(api: Api) -> None:
    for key in ("key", "KEY", " key", "key ", "key\n", "caf\u00e9", "cafe\u0301"):
        assert api.post("/check-lock", key=key).json()["status"] == "locked"


def test_unknown_fields_are_ignored(api: Api) -> None:
    """§1.1"""
    assert api.post("/check-lock", key="k", ttl=60, colour="red").json() == locked("k", 60)


def test_absent_and_null_optional_fields_are_the_same(api: Api) -> None:
    body = {"key": "k", "ttl": None, "metadata": None, "fingerprint": None}
    assert api.post("/check-lock", **body).json() == locked("k", 86_400)


def test_another_fingerprint_under_the_same_key_is_a_mismatch(api: Api) -> None:
    api.post("/check-lock", key="k", fingerprint="one")
    assert api.post("/check-lock", key="k", fingerprint="one").json()["status"] == "duplicate"
    answer = api.post("/check-lock", key="k", fingerprint="two")
    assert answer.status_code == 409
    assert answer.json() == {
        "detail": {
            "error": "fingerprint_mismatch",
            "message": "this key was used for a different request",
            "key": "k",
        }
    }


@pytest.mark.parametrize(("first", "second"), [("one", None), (None, "two"), (None, None)])
def test_a_fingerprint_absent_on_either_side_is_not_compared(
    api: Api, first: str | None, second: str | None
) -> None:
    api.post("/check-lock", key="k", fingerprint=first)
    assert api.post("/check-lock", key="k", fingerprint=second).json()["status"] == "duplicate"


def test_locks_and_ai_keys_are_separate_key_spaces(api: Api) -> None:
    assert api.post("/ai/lease", key="k").json()["status"] == "acquired"
    assert api.post("/check-lock", key="k").json()["status"] == "locked"
    assert api.post("/check-lock", key="l").json()["status"] == "locked"
    assert api.post("/ai/run", key="l").json()["status"] == "acquired"
    assert api.get("/ai/status", key="k").json()["status"] == "in_progress"


def test_every_valid_call_is_traffic_and_blocked_duplicates_are_usage(api: Api) -> None:
    """§2.1 metering: charged and polling stay 0 for `make`."""
    for key in ("a", "a", "a", "b"):
        api.post("/check-lock", key=key)
    assert api.usage("make") == {
        "usage": 2,
        "limit": 2_000_000,
        "requests_total_month": 4,
        "blocked_total_month": 0,
        "charged_total_month": 0,
        "polling_total_month": 0,
    }
    assert api.usage("ai")["requests_total_month"] == 0


def test_refused_calls_count_nothing_and_lock_nothing(api: Api) -> None:
    """§1.2: a refused key changes no counter; §2.1: per authenticated, valid call."""
    api.post("/check-lock", key="")
    api.post("/check-lock", key="k", ttl=0)
    api.request("POST", "/check-lock", json={"key": "k"}, headers={"Authorization": "Bearer once_live_no"})
    assert api.usage("make")["requests_total_month"] == 0
    assert api.post("/check-lock", key="k").json()["status"] == "locked"


def test_the_feed_shows_duplicates_and_not_locks(api: Api) -> None:
    api.post("/check-lock", key="k")
    assert api.get("/events").json() == []
    api.post("/check-lock", key="k")
    (entry,) = api.get("/events").json()
    assert (entry["type"], entry["kind"], entry["key"], entry["status"]) == (
        "duplicate",
        "make",
        "k",
        "duplicate",
    )


def repeat_with(api: Api, request_id: str) -> list[str]:
    """How two calls with one key and one request id are answered."""
    sent = {"json": {"key": "k", "ttl": 60}, "headers": {"X-Request-Id": request_id}}
    return [api.request("POST", "/check-lock", **sent).json()["status"] for _ in range(2)]


def test_the_winners_own_repeat_wins_again_and_is_no_usage(api: Api) -> None:
    """Its first answer may have been lost: told `duplicate`, it would do nothing, and nobody else would."""
    assert repeat_with(api, "call_7f3a") == ["locked", "locked"]
    assert api.post("/check-lock", key="k").json()["status"] == "duplicate"
    headers = {"X-Request-Id": "call_other"}
    assert (
        api.request("POST", "/check-lock", json={"key": "k"}, headers=headers).json()["status"] == "duplicate"
    )
    assert api.usage("make")["usage"] == 2


def test_a_shared_request_id_is_no_repeat(api: Api) -> None:
    """A trace's id is sent along by several calls, and by a webhook's redelivery: only one of them may act."""
    assert repeat_with(api, "trace-7f3a") == ["locked", "duplicate"]
