"""What a flow asks of the world, and how answers are read. No I/O in here.

A flow is a generator of steps that returns its value. Transport errors are thrown into it, so one flow serves the
sync and the async driver alike (transport.py).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from onceonly_jobs.client.exceptions import (
    ApiError,
    LeaseLost,
    OverLimitError,
    RateLimitError,
    StillRunning,
    TimedOut,
    UnauthorizedError,
    Unreachable,
    ValidationError,
)
from onceonly_jobs.client.settings import ClientSettings

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]
logger = logging.getLogger("onceonly_jobs.client")

FAILED_STATUS = frozenset({500, 502, 503, 504})
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""After one of these the server has nothing of the request."""
HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request below the base URL, or, with at_origin, beside it."""

    method: str
    path: str
    json: Json | None = None
    params: Mapping[str, str | int | float] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hold_s: float = 0.0
    """How long the server may hold the answer back on purpose."""
    timeout_s: float | None = None
    """Where it may take less time than the client's requests usually may."""
    repeatable: bool = True
    """False where a repeat of a request that took effect would take effect again."""
    at_origin: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Answered with the httpx.Response. An httpx.TransportError is thrown in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Pause:
    """Go on after this many seconds."""

    seconds: float


Flow: TypeAlias = Generator[Any, Any, T]


@dataclass(frozen=True, slots=True)
class Context:
    """What flows know: the settings, and where time and chance come from."""

    settings: ClientSettings
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def backoff_s(self, attempt: int) -> float:
        """Full jitter: anything between nothing and a bound that doubles with each attempt, from 0 on.

        Source: "Exponential Backoff And Jitter", AWS Architecture Blog.
        """
        bound = min(self.settings.retry_max_backoff, self.settings.retry_backoff * 2.0 ** min(attempt, 30))
        return self.chance() * bound


def segment(name: str) -> str:
    """A name as one segment of a path. Raises ValueError for an empty one."""
    if not name:
        raise ValueError("a name in a path must not be empty")
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


Outcome: TypeAlias = httpx.Response | httpx.TransportError


def exchange(
    ctx: Context, request: Request, *, give_up_at: float | None = None, persist: bool = False
) -> Flow[httpx.Response]:
    """The answer to a request, repeated after failures that a repeat may mend.

    give_up_at: no repeat begins after it, but for a 429. persist: repeat until then, however often.
    The answer's extension `unsure` tells that an earlier attempt may have taken effect without being answered.
    Raises Unreachable.
    """
    attempt, unsure = 0, False
    while True:
        outcome = yield from _attempt(request)
        delay = _delay(ctx, attempt, outcome)
        patient = persist or (attempt < ctx.settings.retries and delay <= ctx.settings.longest_retry_after)
        late = give_up_at is not None and ctx.clock() + delay >= give_up_at and not _refused_for_now(outcome)
        if late or not patient or not _mendable(request, outcome):
            break
        unsure = unsure or not (_refused_for_now(outcome) or isinstance(outcome, NOT_SENT))
        attempt += 1
        logger.info("%s %s: repeat in %.2f s after %r", request.method, request.path, delay, outcome)
        yield Pause(delay)
    if isinstance(outcome, httpx.TransportError):
        raise _unreachable(request, outcome) from outcome
    outcome.extensions["unsure"] = unsure
    return outcome


def _attempt(request: Request) -> Flow[Outcome]:
    try:
        response: httpx.Response = yield Send(request)
    except httpx.TransportError as failure:
        return failure
    return response


def _delay(ctx: Context, attempt: int, outcome: Outcome) -> float:
    asked = retry_after(outcome) if isinstance(outcome, httpx.Response) else None
    return ctx.backoff_s(attempt) if asked is None else asked


def _refused_for_now(outcome: Outcome) -> bool:
    return isinstance(outcome, httpx.Response) and outcome.status_code == 429


def _mendable(request: Request, outcome: Outcome) -> bool:
    """Whether a repeat may help, and can do no harm."""
    if isinstance(outcome, httpx.TransportError):
        return isinstance(outcome, NOT_SENT) or (request.repeatable and not isinstance(outcome, HOPELESS))
    return _refused_for_now(outcome) or (request.repeatable and outcome.status_code in FAILED_STATUS)


def _unreachable(request: Request, failure: httpx.TransportError) -> Unreachable:
    kind = TimedOut if isinstance(failure, httpx.TimeoutException) else Unreachable
    words = str(failure) or type(failure).__name__
    error = kind(f"{request.method} {request.path}: {words}")
    if isinstance(failure, NOT_SENT):
        error.add_note("The server was not reached: check base_url, or ONCEONLY_BASE_URL, and that it is up.")
    else:
        error.add_note(
            "Whether the server took the request is not known; with the same key it is safe to repeat."
        )
    return error


def retry_after(response: httpx.Response) -> float | None:
    """Seconds from the `Retry-After` header; a date counts as none."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def call(ctx: Context, request: Request, **options: Any) -> Flow[Json]:
    """The body of a successful answer. Raises as `read` does, and Unreachable."""
    response = yield from exchange(ctx, request, **options)
    return read(response)


def read(response: httpx.Response) -> Json:
    """The JSON object of a 2xx answer: a list as `{"data": [...]}`, nothing as `{}`. Raises as `refusal` says."""
    if not response.is_success:
        raise refusal(response)
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {"data": body}


def detail_of(response: httpx.Response) -> Any:
    """What the answer carries as `detail`; the whole body where it is another server's."""
    try:
        body = response.json()
    except ValueError:
        return None
    return body["detail"] if isinstance(body, dict) and "detail" in body else body


_KEY_WORDS = {"forbidden", "invalid api key", "invalid_api_key", "api key disabled", "api_key_disabled"}


def refusal(response: httpx.Response) -> Exception:
    """The error that an answer stands for, with a note on what to do."""
    status, found = response.status_code, detail_of(response)
    detail: Json = found if isinstance(found, dict) else {}
    about: dict[str, Any] = {
        "status_code": status,
        "detail": detail,
        "request_id": response.headers.get("X-Request-Id"),
    }
    error = _classified(status, found, detail, response, about)
    note = _advice(status, detail)
    if note:
        error.add_note(note)
    return error


def _classified(
    status: int, found: Any, detail: Json, response: httpx.Response, about: dict[str, Any]
) -> Exception:
    text = _text(found)
    if status == 401 or (status == 403 and _about_the_key(found, detail)):
        return UnauthorizedError(text or "the API key was refused", **about)
    if status == 402:
        message = detail.get("message") or text or "a limit is used up"
        return OverLimitError(str(message), **about)
    if status == 429:
        return RateLimitError(text or "too many requests", retry_after(response), **about)
    if status == 422:
        errors = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return ValidationError(text or f"Validation Error: {response.text}", errors=errors, **about)
    message = text or f"the server answered {status}"
    if status == 409 and detail.get("error") == "lease_conflict":
        return LeaseLost(message, **about)
    if status == 409 and detail.get("error") == "in_progress":
        return StillRunning(message, **about)
    return ApiError(message, **about)


def _text(found: Any) -> str:
    """The message of a detail: its code, and its words where it has other ones."""
    if isinstance(found, str):
        return found.strip()
    if not isinstance(found, dict):
        return ""
    words = [str(found[name]) for name in ("error", "message") if found.get(name)]
    return ": ".join(dict.fromkeys(words))


def _about_the_key(found: Any, detail: Json) -> bool:
    words = [found, detail.get("error"), detail.get("message")]
    return found is None or any(
        isinstance(word, str) and word.strip().lower() in _KEY_WORDS for word in words
    )


_ADVICE = {
    401: "Check api_key, or ONCEONLY_API_KEY: it begins with once_live_.",
    422: "The request is wrong; repeating it as it is can't help.",
    429: "Retries are on by default (max_retries_429); come back after retry_after_sec.",
}


def _advice(status: int, detail: Json) -> str | None:
    if status == 402:
        until = detail.get("resets_at")
        raised = "raise the limit with gov.upsert_policy" if detail.get("agent_id") else "take a larger plan"
        return f"Wait until {until}, or {raised}." if until else f"To go on, {raised}."
    if status == 403:
        if detail.get("error") in ("feature_not_available", "plan_limit"):
            return "The plan does not include this; see `detail`, or set another plan for the tenant."
        return _ADVICE[401]
    if status >= 500:
        return "The server failed. It is safe to repeat the call with the same key."
    return _ADVICE.get(status)


def without_retries(ctx: Context) -> Context:
    """For a flow that repeats by itself."""
    return replace(ctx, settings=replace(ctx.settings, retries=0))
