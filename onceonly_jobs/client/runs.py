"""Runs by key, governed tool calls, and waiting for either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onceonly_jobs.client import payloads
from onceonly_jobs.client.exceptions import (
    ApiError,
    LeaseLost,
    OnceOnlyError,
    RateLimitError,
    StillRunning,
    Unreachable,
)
from onceonly_jobs.client.governed import agent
from onceonly_jobs.client.models import AiResult, AiRun, AiStatus, AiToolResult
from onceonly_jobs.client.wire import Context, Flow, Json, Pause, Request, call, logger, without_retries

HOLD_S = 20.0
"""How long one long poll is asked to last; servers and proxies cut off longer silences."""
FINAL = ("completed", "failed")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a key, and how often to ask a server that can't hold a request. Seconds."""

    timeout: float = 60.0
    poll_min: float = 0.5
    poll_max: float = 5.0


@dataclass(frozen=True, slots=True)
class Extending:
    """What a waiter needs to keep extending the key it waits for."""

    lease_id: str
    ttl: int | None
    every: float


def run_by_key(
    ctx: Context,
    key: str,
    ttl: int | None,
    metadata: payloads.MetadataLike | None,
    run_id: str | None,
    fingerprint: str | None = None,
) -> Flow[AiRun]:
    """Ask for a run, or attach to the one there is."""
    name = run_name(run_id)
    sent = payloads.metadata(metadata)
    if name is not None:
        sent = {**(sent or {}), "run_id": name}
    answer = yield from call(ctx, Request("POST", "/ai/run", _keyed(ctx, key, ttl, sent, fingerprint)))
    return AiRun.from_dict(answer)


def run_name(run_id: str | None) -> str | None:
    """A run id as it is sent. Raises ValueError for a blank one."""
    if run_id is None:
        return None
    name = str(run_id).strip()
    if not name:
        raise ValueError("run_id must not be empty")
    return name


def _keyed(ctx: Context, key: str, ttl: int | None, metadata: Json | None, fingerprint: str | None) -> Json:
    ttl = ctx.settings.ttl if ttl is None else int(ttl)
    optional = {"ttl": ttl, "metadata": metadata, "fingerprint": fingerprint}
    return {"key": key, **{name: value for name, value in optional.items() if value is not None}}


def run_tool(
    ctx: Context,
    agent_id: str | None,
    tool: str,
    args: Json | None,
    spend_usd: float | None,
    run_id: str | None,
    timeout: float,
) -> Flow[AiToolResult]:
    """A governed call. While the tool is at work the same call is repeated, which attaches to it.

    Raises StillRunning when it outlasts the timeout, OverLimitError for a limit of the agent's policy.
    """
    name = run_name(run_id)
    given = {**(args or {}), **({} if name is None else {"run_id": name})}
    body: Json = {"agent_id": agent(ctx, agent_id), "tool": str(tool)}
    if given:
        body["args"] = given
    if spend_usd is not None:
        body["spend_usd"] = float(spend_usd)
    end = ctx.clock() + timeout
    while True:
        asked_at = ctx.clock()
        hold = max(1, int(min(HOLD_S, end - asked_at)))
        request = Request("POST", "/ai/run", body, headers={"Prefer": f"wait={hold}"}, hold_s=hold)
        try:
            return AiToolResult.from_dict((yield from call(ctx, request)))
        except StillRunning as running:
            left = end - ctx.clock()
            if left <= 0:
                raise
            yield from _rest(ctx, asked_at, min(left, float(running.detail.get("retry_after_sec") or 1)))


def status(ctx: Context, key: str, wait: float | None = None) -> Flow[AiStatus]:
    return _asked(ctx, "/ai/status", key, wait, AiStatus.from_dict)


def result(ctx: Context, key: str, wait: float | None = None) -> Flow[AiResult]:
    return _asked(ctx, "/ai/result", key, wait, AiResult.from_dict)


def _asked(ctx: Context, path: str, key: str, wait: float | None, of: Callable[[Json], Any]) -> Flow[Any]:
    hold = max(0.0, wait or 0.0)
    params: dict[str, str | int | float] = {"key": key}
    if hold:
        params["wait"] = round(hold, 3)
    answer = yield from call(ctx, Request("GET", path, params=params, hold_s=hold))
    return of(answer)


def wait(ctx: Context, key: str, patience: Patience, extending: Extending | None = None) -> Flow[AiResult]:
    """The outcome of a key as soon as it has one; after the timeout, a failed one with `error_code="timeout"`.

    A server that is away or too busy meanwhile is asked again until then. Raises what it refuses otherwise.
    """
    end = ctx.clock() + patience.timeout
    asking, failures = without_retries(ctx), 0
    extend_at = None if extending is None else ctx.clock() + extending.every
    while True:
        asked_at = ctx.clock()
        hold = min(HOLD_S, end - asked_at, HOLD_S if extend_at is None else max(0.0, extend_at - asked_at))
        trouble: OnceOnlyError | None = None
        try:
            seen = yield from result(asking, key, hold)
            if seen.status in FINAL:
                return seen
            failures = 0
        except (Unreachable, RateLimitError, ApiError) as error:
            if isinstance(error, ApiError) and (error.status_code or 0) < 500:
                raise
            trouble, failures = error, failures + 1
            logger.info("waiting for %r goes on after: %s", key, error)
        if ctx.clock() >= end:
            if trouble is not None:
                raise trouble
            return AiResult(ok=False, status="failed", key=key, error_code="timeout")
        if extend_at is not None and extending is not None and ctx.clock() >= extend_at:
            kept = yield from _extended(asking, key, extending)
            extend_at = ctx.clock() + extending.every if kept else None
        if trouble is not None:
            yield Pause(min(max(ctx.backoff_s(failures), _asked_for(trouble)), max(0.0, end - ctx.clock())))
        elif not _was_held(ctx, asked_at, hold):
            pause = yield from _suggested(asking, key, patience)
            yield from _rest(ctx, asked_at, min(pause, max(0.0, end - asked_at)))


def timed_out(outcome: AiResult) -> bool:
    """Whether it was the waiting that came to its end, and not the run."""
    return outcome.error_code == "timeout" and outcome.done_at is None


def _asked_for(trouble: OnceOnlyError) -> float:
    return (trouble.retry_after_sec or 0.0) if isinstance(trouble, RateLimitError) else 0.05


def _was_held(ctx: Context, asked_at: float, hold: float) -> bool:
    """Whether the server waited before it answered: then it may be asked again at once."""
    return 0 < 0.9 * min(hold, 1.0) <= ctx.clock() - asked_at


def _suggested(ctx: Context, key: str, patience: Patience) -> Flow[float]:
    """The poll interval that the server suggests, within the caller's bounds."""
    try:
        seen = yield from status(ctx, key)
    except (Unreachable, RateLimitError, ApiError):
        return patience.poll_max
    if seen.status in FINAL:
        return 0.0
    wanted = patience.poll_min if seen.retry_after_sec is None else float(seen.retry_after_sec)
    return max(patience.poll_min, min(patience.poll_max, wanted))


def _rest(ctx: Context, since: float, seconds: float) -> Flow[None]:
    """Pause until so many seconds have passed since then."""
    left = seconds - (ctx.clock() - since)
    if left > 0:
        yield Pause(left)


def _extended(ctx: Context, key: str, extending: Extending) -> Flow[bool]:
    """Extend once; whether it makes sense to go on doing so."""
    try:
        yield from extend(ctx, key, extending.lease_id, extending.ttl)
    except LeaseLost:
        return False
    except OnceOnlyError as error:
        logger.debug("waiting for %r: not extended: %s", key, error)
    return True


def run_and_wait(
    ctx: Context,
    key: str,
    ttl: int | None,
    metadata: payloads.MetadataLike | None,
    run_id: str | None,
    patience: Patience,
    extend_every: float | None,
) -> Flow[AiResult]:
    """The outcome of a key, whoever asked for it first."""
    run = yield from run_by_key(ctx, key, ttl, metadata, run_id)
    if run.status in FINAL:
        return AiResult.from_dict(vars(run))
    extending = None
    if extend_every is not None and run.lease_id:
        extending = Extending(run.lease_id, ttl, max(1.0, extend_every))
    return (yield from wait(ctx, key, patience, extending))


def lease(
    ctx: Context,
    key: str,
    ttl: int | None,
    metadata: payloads.MetadataLike | None,
    fingerprint: str | None = None,
) -> Flow[Json]:
    """Claim a key for work that the caller does."""
    body = _keyed(ctx, key, ttl, payloads.metadata(metadata), fingerprint)
    return call(ctx, Request("POST", "/ai/lease", body))


def extend(
    ctx: Context, key: str, lease_id: str, ttl: int | None, timeout_s: float | None = None
) -> Flow[Json]:
    body: Json = {"key": key, "lease_id": lease_id, **({} if ttl is None else {"ttl": int(ttl)})}
    return call(ctx, Request("POST", "/ai/extend", body, timeout_s=timeout_s))


def complete(
    ctx: Context, key: str, lease_id: str, stored: Json | None, result_hash: str | None, **options: Any
) -> Flow[Json]:
    """`options` are those of wire.exchange."""
    fields = {"result_hash": None if result_hash is None else str(result_hash), "result": stored}
    body = {name: value for name, value in fields.items() if value is not None}
    return call(ctx, Request("POST", "/ai/complete", {"key": key, "lease_id": lease_id, **body}), **options)


def fail(ctx: Context, key: str, lease_id: str, error_code: str, error_hash: str | None) -> Flow[Json]:
    return _held(ctx, "/ai/fail", key, lease_id, error_code=str(error_code), error_hash=error_hash)


def cancel(ctx: Context, key: str, lease_id: str, reason: str | None) -> Flow[Json]:
    return _held(ctx, "/ai/cancel", key, lease_id, reason=str(reason) if reason else None)


def _held(ctx: Context, path: str, key: str, lease_id: str, **fields: Any) -> Flow[Json]:
    given = {name: value for name, value in fields.items() if value is not None}
    return call(ctx, Request("POST", path, {"key": key, "lease_id": lease_id, **given}))


def settle(
    ctx: Context,
    key: str,
    happened: bool,
    answered: Json | None,
    cost_usd: float | None,
    decision_id: int | None,
) -> Flow[Json]:
    """Say what became of a call of unknown outcome."""
    fields = {"result": answered, "cost_usd": cost_usd, "decision_id": decision_id}
    given = {name: value for name, value in fields.items() if value is not None}
    return call(ctx, Request("POST", "/ai/settle", {"key": key, "happened": bool(happened), **given}))
