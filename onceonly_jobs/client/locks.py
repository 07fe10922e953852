"""check-lock: may I do it now?"""

from __future__ import annotations

import secrets
from typing import Any

import httpx

from onceonly_jobs.client import payloads
from onceonly_jobs.client.exceptions import TimedOut, Unreachable
from onceonly_jobs.client.models import CheckLockResult
from onceonly_jobs.client.wire import Context, Flow, Json, Request, detail_of, exchange, logger, read, refusal

CALL_ID_PREFIX = "call_"
"""A request id that begins so is one call's own: the server answers its repeats as it answered the first."""


def check_lock(
    ctx: Context,
    key: str,
    ttl: int | None,
    meta: payloads.MetadataLike | None,
    request_id: str | None,
    fingerprint: str | None = None,
) -> Flow[CheckLockResult]:
    """Whether this call is the first with its key.

    A call that fails open repeats only as long as one request may take: then it goes on unguarded.
    """
    settings = ctx.settings
    ttl = settings.ttl if ttl is None else int(ttl)
    body: Json = {"key": key}
    if ttl is not None:
        body["ttl"] = ttl
    metadata = payloads.metadata(meta)
    if metadata is not None:
        body["metadata"] = metadata
    if fingerprint is not None:
        body["fingerprint"] = fingerprint
    headers = {"X-Request-Id": request_id or f"{CALL_ID_PREFIX}{secrets.token_hex(16)}"}
    request = Request("POST", "/check-lock", body, headers=headers)
    give_up_at = ctx.clock() + settings.timeout if settings.fail_open else None
    try:
        response = yield from exchange(ctx, request, give_up_at=give_up_at)
    except Unreachable as error:
        if not settings.fail_open:
            raise
        return _failed_open("timeout" if isinstance(error, TimedOut) else "request_error", error, body)
    if response.status_code >= 500 and settings.fail_open:
        return _failed_open("api_5xx", refusal(response), body)
    return _read(response, body)


def _failed_open(reason: str, error: Exception, body: Json) -> CheckLockResult:
    logger.warning(
        "check_lock(%r) fails open (%s), the caller goes on unguarded: %s", body["key"], reason, error
    )
    raw: Json = {"fail_open": True, "reason": reason}
    return CheckLockResult(
        locked=True,
        duplicate=False,
        key=body["key"],
        ttl=int(body.get("ttl") or 0),
        first_seen_at=None,
        request_id="fail-open",
        status_code=0,
        raw=_with_metadata(raw, body),
    )


def _read(response: httpx.Response, body: Json) -> CheckLockResult:
    if response.status_code == 409:
        found = detail_of(response)
        if isinstance(found, dict) and found.get("error") == "fingerprint_mismatch":
            raise refusal(response)
        first_seen_at = found.get("first_seen_at") if isinstance(found, dict) else None
        return _result(response, body, {} if found is None else {"detail": found}, False, first_seen_at)
    answer = read(response)
    said = (str(answer.get("status") or ""), response.headers.get("X-OnceOnly-Status", ""))
    words = [word.strip().lower() for word in said]
    word = next((word for word in words if word in ("locked", "duplicate")), None)
    locked = bool(answer.get("success")) if word is None else word == "locked"
    return _result(response, body, answer, locked, answer.get("first_seen_at"))


def _result(
    response: httpx.Response, body: Json, answer: Json, locked: bool, first_seen_at: Any
) -> CheckLockResult:
    if not locked and response.extensions.get("unsure"):
        logger.warning(
            "check_lock(%r): duplicate, but an earlier attempt of this call may have taken the lock itself; "
            "its answer was lost",
            body["key"],
        )
        answer = {**answer, "unsure": True}
    return CheckLockResult(
        locked=locked,
        duplicate=not locked,
        key=str(answer.get("key") or body["key"]),
        ttl=int(answer.get("ttl") or body.get("ttl") or 0),
        first_seen_at=first_seen_at,
        request_id=response.headers.get("X-Request-Id"),
        status_code=response.status_code,
        raw=_with_metadata(answer, body),
    )


def _with_metadata(raw: Json, body: Json) -> Json:
    return {"metadata": body["metadata"], **raw} if "metadata" in body else raw
