"""Work done under a lease: kept while it runs, finished once, and told when it no longer counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from onceonly_jobs.client import payloads, runs
from onceonly_jobs.client.exceptions import (
    ApiError,
    LeaseLost,
    OnceOnlyError,
    RateLimitError,
    Unreachable,
    ValidationError,
)
from onceonly_jobs.client.models import AiResult
from onceonly_jobs.client.wire import Context, Flow, Json, Pause, logger, without_retries

DEFAULT_TTL_S = 300
RETRY_BEAT_S = 1.0
FINISH_S = 60
current: ContextVar[Lease | None] = ContextVar("onceonly_lease", default=None)


def current_lease() -> Lease | None:
    """The lease that the running function works under, or None outside of one."""
    return current.get()


class Lease:
    """The right to work on a key.

    acquired: whether this caller has it; if not, `status` says how the key stands, and `outcome` is what came of it
    where it is finished. A holder asks `lost` or `check()` at points where it can still stop.
    """

    def __init__(
        self,
        key: str,
        answer: Json,
        *,
        ttl: int,
        asked_at: float,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> None:
        self.key = key
        self.asked_at = asked_at
        self.status = str(answer.get("status") or "").lower()
        self.lease_id = str(answer.get("lease_id") or "")
        self.ttl = int(answer.get("ttl") or ttl)
        self.raw = answer
        self.acquired = self.status == "acquired"
        self.outcome: AiResult | None = AiResult.from_dict(answer) if self.status in runs.FINAL else None
        self.result: Any = None
        self.working = False
        """Whether the holder is at work, so that a loss concerns it."""
        self._on_lost = on_lost
        self._why: LeaseLost | None = None
        self._lost = threading.Event()

    def __repr__(self) -> str:
        lost = ", lost=True" if self.lost else ""
        return f"Lease(key={self.key!r}, status={self.status!r}, ttl={self.ttl}{lost})"

    @property
    def lost(self) -> bool:
        """Somebody else may be at work on the key: what is done from now on may be done twice."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raises LeaseLost once the lease is lost."""
        if self._why is not None:
            raise LeaseLost(
                str(self._why),
                status_code=self._why.status_code,
                detail=self._why.detail,
                request_id=self._why.request_id,
            )

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Block until the lease is lost, or for so many seconds; whether it is."""
        return self._lost.wait(timeout)

    def set_result(self, value: Any) -> None:
        """What a `with client.lease(...)` block stores at its end: a mapping, a model, a dataclass, or any value."""
        self.result = value

    def lose(self, why: LeaseLost) -> None:
        """Tell the holder. The first reason stays."""
        if self.lost:
            return
        self._why = why
        self._lost.set()
        logger.warning("the lease on %r is lost: %s", self.key, why)
        if self._on_lost is not None:
            try:
                self._on_lost(self)
            except Exception:
                logger.exception("on_lost of the lease on %r failed", self.key)


@dataclass(frozen=True, slots=True)
class Work:
    """Answered with the function's value, run while the lease is kept. What it raises is thrown in."""

    lease: Lease
    function: Callable[[], Any]
    every: float


def beat_every(ttl: int, extend_every: float) -> float:
    """Seconds between heartbeats: a third of the lease at most, so that two may fail before it runs out."""
    return max(0.01, min(float(extend_every), ttl / 3))


def beats(ctx: Context, lease: Lease, every: float) -> Flow[None]:
    """Extend until told to stop, or until the lease is lost.

    Lost is a lease that the server gives to somebody else, and one that could not be confirmed for its whole time.
    """
    asking, confirmed_at, pause = without_retries(ctx), lease.asked_at, every
    while True:
        yield Pause(pause)
        asked_at = ctx.clock()
        in_time = max(0.1, confirmed_at + lease.ttl - asked_at)
        try:
            yield from runs.extend(asking, lease.key, lease.lease_id, lease.ttl, in_time)
        except OnceOnlyError as error:
            left = confirmed_at + lease.ttl - ctx.clock()
            if not _may_pass(error) or left <= 0:
                if lease.working:
                    lease.lose(_reason(lease, error))
                return
            logger.info("heartbeat of %r failed, %.1f s left: %s", lease.key, left, error)
            pause = min(every, RETRY_BEAT_S, left)
        else:
            confirmed_at, pause = asked_at, every


def _may_pass(error: OnceOnlyError) -> bool:
    if isinstance(error, Unreachable | RateLimitError):
        return True
    return isinstance(error, ApiError) and (error.status_code or 0) >= 500


def _reason(lease: Lease, error: Exception) -> LeaseLost:
    if isinstance(error, LeaseLost):
        return error
    detail = {"error": "lease_conflict", "reason": "unconfirmed", "key": lease.key}
    return LeaseLost(
        f"lease_conflict: it could not be extended in time: {error}",
        status_code=getattr(error, "status_code", None),
        detail=detail,
    )


@contextmanager
def failing_beats(lease: Lease) -> Iterator[None]:
    """Heartbeats that break off for a reason nobody foresaw are a lost lease, not a silent one."""
    try:
        yield
    except Exception as error:
        if lease.working:
            logger.exception("the heartbeats of %r broke off", lease.key)
            lease.lose(_reason(lease, error))


def acquire(
    ctx: Context,
    key: str,
    ttl: int | None,
    metadata: payloads.MetadataLike | None,
    on_lost: Callable[[Lease], object] | None = None,
    fingerprint: str | None = None,
) -> Flow[Lease]:
    """Claim a key. fingerprint: of the request; the same key with another one raises ApiError (409)."""
    wanted = int(ttl or ctx.settings.ttl or DEFAULT_TTL_S)
    asked_at = ctx.clock()
    answer = yield from runs.lease(ctx, key, wanted, metadata, fingerprint)
    lease = Lease(key, answer, ttl=wanted, asked_at=asked_at, on_lost=on_lost)
    if lease.acquired and not lease.lease_id:
        raise ApiError(
            "the server granted a lease without a lease_id", detail={"error": "missing_lease_id", "key": key}
        )
    return lease


def run_fn(
    ctx: Context,
    key: str,
    function: Callable[[], Any],
    *,
    ttl: int | None,
    metadata: payloads.MetadataLike | None,
    extend_every: float,
    wait_on_conflict: bool,
    patience: runs.Patience,
    error_code: str,
    on_lost: Callable[[Lease], object] | None = None,
    encode: Callable[[Any], Json | None] = payloads.result,
    returned_here: list[Any] | None = None,
) -> Flow[AiResult]:
    """The outcome of a key, by running the function if nobody else did or does.

    returned_here: receives what the function returned, if it was this call that ran it.
    Raises what the function raises, after it was stored as failed; LeaseLost when its result was refused.
    """
    end = ctx.clock() + patience.timeout
    while True:
        lease = yield from acquire(ctx, key, ttl, metadata, on_lost)
        if lease.acquired:
            break
        if lease.outcome is not None:
            return lease.outcome
        if not wait_on_conflict:
            return AiResult(
                ok=False, status=lease.status or "in_progress", key=key, error_code="not_acquired"
            )
        # A holder that dies is taken over by one that waits for it: when its time is over, ask again.
        ttl_left = lease.raw.get("ttl_left")
        left = end - ctx.clock()
        slice_s = left if ttl_left is None else min(left, float(ttl_left) + 1)
        outcome = yield from runs.wait(ctx, key, replace(patience, timeout=slice_s))
        if not runs.timed_out(outcome) or ctx.clock() >= end:
            return outcome
    try:
        returned = yield Work(lease, function, beat_every(lease.ttl, extend_every))
    except Exception:
        if not lease.lost:
            yield from give_up(ctx, lease, error_code)
        raise
    outcome = yield from finish(ctx, lease, returned, encode)
    if returned_here is not None:
        returned_here.append(returned)
    return outcome


def finish(
    ctx: Context, lease: Lease, returned: Any, encode: Callable[[Any], Json | None] = payloads.result
) -> Flow[AiResult]:
    """Store a result, repeating for up to a minute of the lease's time: what was done must not be done again.

    A result that can't be stored is stored as a failure, `result_rejected`, and its error raised.
    Raises LeaseLost when the key is somebody else's by now.
    """
    give_up_at = ctx.clock() + min(lease.ttl, FINISH_S)
    try:
        stored = encode(returned)
        answer = yield from runs.complete(
            ctx, lease.key, lease.lease_id, stored, None, give_up_at=give_up_at, persist=True
        )
    except LeaseLost as why:
        lease.lose(why)
        raise
    except (TypeError, ValueError, ValidationError):
        yield from give_up(ctx, lease, "result_rejected")
        raise
    except ApiError as error:
        if error.status_code == 413:
            yield from give_up(ctx, lease, "result_rejected")
        error.add_note("The work was done; its result was not stored.")
        raise
    except OnceOnlyError as error:
        error.add_note("The work was done; whether its result was stored is not known.")
        raise
    if "done_at" not in answer:
        return (yield from runs.result(ctx, lease.key))
    return AiResult(
        ok=True,
        status="completed",
        key=lease.key,
        result=stored,
        result_hash=answer.get("result_hash"),
        done_at=answer.get("done_at"),
    )


def give_up(ctx: Context, lease: Lease, error_code: str) -> Flow[None]:
    """Store a failure, if the server takes it. The caller has a more important error to raise."""
    try:
        yield from runs.fail(ctx, lease.key, lease.lease_id, error_code, None)
    except OnceOnlyError as error:
        logger.warning("the failure of %r could not be stored: %s", lease.key, error)


def leave(ctx: Context, lease: Lease, error: BaseException | None, error_code: str) -> Flow[None]:
    """The end of a block that worked under a lease: its result stored, or its failure.

    A block that was interrupted (Ctrl-C, cancellation) leaves the lease to run out, as a crash would.
    """
    if error is None:
        lease.outcome = yield from finish(ctx, lease, lease.result)
    elif isinstance(error, Exception) and not lease.lost:
        yield from give_up(ctx, lease, error_code)
