"""A call of a registered HTTP tool: signed, within its time, and repeated only where that can do no harm."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

import onceonly_jobs
from onceonly_jobs import metrics, tracing
from onceonly_jobs.domain.addresses import Allowed
from onceonly_jobs.domain.effects import Attempted, Effect, Reach, Verdict, should_retry, verdict
from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.retries import retry_delay_s
from onceonly_jobs.domain.signatures import sign
from onceonly_jobs.worker.addresses import PUBLIC_ONLY, Forbidden
from onceonly_jobs.worker.tool_result import MAX_ANSWER_BYTES, complaint_of, cost_of, error_of, result_of
from onceonly_jobs.worker.tool_wire import Answer, Lost, NotSent, post

BACKOFF_BASE_S = 0.5
BACKOFF_MAX_S = 15.0
LONGEST_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is registered."""

    name: str
    url: str
    secret: str = field(repr=False)
    timeout_ms: int = 15_000
    max_retries: int = 2
    effect: Effect = Effect.IDEMPOTENT


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the tool is told. The idempotency key (visible ASCII) is the same in each attempt and redelivery."""

    agent_id: str
    tool: str
    args: dict[str, Any]
    spend_usd: float
    run_id: str | None
    request_id: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """How a call ended."""

    kind: Literal["executed", "tool_error"]
    sent: bool
    """False only when provably nothing was sent in any attempt"""
    unknown: bool
    """whether it may have been carried out and can't be repeated: to be held until that is settled"""
    result: dict[str, Any]
    status: int | None
    attempts: int
    latency_ms: int
    """of the whole call, with its retries and the pauses between them"""
    cost_usd: float | None
    """as the tool says it; None when it says nothing"""


@dataclass(frozen=True, slots=True)
class _Tried:
    attempted: Attempted
    message: str = ""
    answer: Answer | None = None


def _never() -> bool:
    return False


def call_tool(
    spec: ToolSpec,
    call: ToolCall,
    *,
    allowed: Allowed = PUBLIC_ONLY,
    sleep: Callable[[float], object] = time.sleep,
    stop: Callable[[], bool] = _never,
) -> ToolOutcome:
    """How the call ended, after at most max_retries more attempts than one. What goes wrong is no exception.

    `stop` is asked before each retry, before and after the pause: once it is true, there is none. `sleep` may
    return early. Raises ValueError, before anything is sent, for args that are not JSON or a bad idempotency key.
    """
    body = _body(call)
    started, attempts, sent = time.monotonic(), 0, False
    while True:
        attempts += 1
        tried = _attempt(spec, call, body, allowed)
        sent = sent or tried.attempted.sent
        if attempts > spec.max_retries or not should_retry(spec.effect, tried.attempted) or stop():
            break
        sleep(_pause_s(attempts, tried.answer))
        if stop():
            break
    outcome = _outcome(spec.effect, tried, attempts, sent, round((time.monotonic() - started) * 1000))
    seen_as = "unknown" if outcome.unknown else outcome.kind
    metrics.count(metrics.TOOL_CALLS, seen_as)
    metrics.observe(metrics.TOOL_SECONDS, seen_as, seconds=outcome.latency_ms / 1000)
    return outcome


def _body(call: ToolCall) -> bytes:
    return compact_json(
        {
            "agent_id": call.agent_id,
            "tool": call.tool,
            "args": call.args,
            "spend_usd": call.spend_usd,
            "run_id": call.run_id,
            "request_id": call.request_id,
            "idempotency_key": call.idempotency_key,
        }
    )


def _attempt(spec: ToolSpec, call: ToolCall, body: bytes, allowed: Allowed) -> _Tried:
    attributes = {
        "http.request.method": "POST",
        "onceonly.tool": spec.name,
        "onceonly.effect": spec.effect.value,
    }
    with tracing.span(f"POST {spec.name}", "client", attributes=attributes) as span:
        tried = _posted(spec, call, body, allowed)
        _describe(span, tried.attempted)
    return tried


def _describe(span: Any, attempted: Attempted) -> None:
    if span is None:
        return
    if attempted.status is not None:
        span.set_attribute("http.response.status_code", attempted.status)
    if attempted.status is None or attempted.status >= 400:
        tracing.failed(span, str(attempted.status or attempted.reach.name.lower()))


def _posted(spec: ToolSpec, call: ToolCall, body: bytes, allowed: Allowed) -> _Tried:
    headers = signed_headers(spec.secret, body, call.idempotency_key)
    tracing.inject(headers)
    try:
        answer = post(
            url_of(spec.url),
            headers,
            body,
            allowed=allowed,
            timeout_s=spec.timeout_ms / 1000,
            limit=MAX_ANSWER_BYTES,
        )
    except Forbidden as error:
        return _Tried(Attempted(Reach.FORBIDDEN), str(error))
    except NotSent as error:
        return _Tried(Attempted(Reach.NOT_SENT), f"the tool was not reached: {error}")
    except Lost as error:
        return _Tried(Attempted(Reach.UNKNOWN), f"the tool was called, but did not answer: {error}")
    return _Tried(Attempted(Reach.ANSWERED, answer.status), complaint_of(answer), answer)


def signed_headers(secret: str, body: bytes, idempotency_key: str) -> dict[str, str]:
    """What a request to a tool carries, so that the tool can tell who sent it, when, and about which call."""
    return {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # what is read is what was sent, and no larger
        "User-Agent": f"onceonly-jobs/{onceonly_jobs.__version__}",
        "X-OnceOnly-Idempotency-Key": idempotency_key,
        **sign(secret, body, int(time.time()), idempotency_key),
    }


def url_of(text: str) -> httpx.URL:
    """The URL of a tool. Raises Forbidden for what is none."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise Forbidden(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Forbidden("a tool's URL starts with http:// or https:// and names a host")
    return url


def _pause_s(attempts: int, answer: Answer | None) -> float:
    """Backoff with jitter, or longer where the tool asks for it."""
    pause_s = retry_delay_s(attempts, random.random(), BACKOFF_BASE_S, BACKOFF_MAX_S)  # noqa: S311
    try:
        asked_s = float(answer.headers.get("retry-after", "")) if answer is not None else 0.0
    except ValueError:
        asked_s = 0.0
    return max(pause_s, min(asked_s, LONGEST_RETRY_AFTER_S))


def _outcome(effect: Effect, last: _Tried, attempts: int, sent: bool, latency_ms: int) -> ToolOutcome:
    end, answer = verdict(effect, last.attempted), last.answer
    executed = end is Verdict.EXECUTED and answer is not None
    return ToolOutcome(
        kind="executed" if executed else "tool_error",
        sent=sent,
        unknown=end is Verdict.UNKNOWN,
        result=result_of(answer) if executed and answer else error_of(last.attempted.status, last.message),
        status=last.attempted.status,
        attempts=attempts,
        latency_ms=latency_ms,
        cost_usd=cost_of(answer) if answer else None,
    )
