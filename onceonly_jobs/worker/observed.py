"""One attempt at a run as operators see it: counted, timed, traced, and named in the log lines of its thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from structlog.contextvars import bound_contextvars

from onceonly_jobs import metrics, tracing
from onceonly_jobs.domain.runs import Claim

BAD = frozenset(("failed", "lost", "handed_back"))


@contextmanager
def observed(claim: Claim) -> Iterator[Callable[[str], None]]:
    """For the length of the attempt; it is given a function to tell how that ended.

    Left by an exception, it was handed back: this process is told to end.
    """
    started, fate = time.monotonic(), "handed_back"

    def ended(as_: str) -> None:
        nonlocal fate
        fate = as_

    begun(claim)
    with named(claim), traced(claim) as span:
        try:
            yield ended
        finally:
            counted(claim, fate, time.monotonic() - started)
            told(span, fate)


def begun(claim: Claim) -> None:
    """Count how long it had to wait."""
    if claim.due_at is not None:
        waited_s = max(0.0, (claim.claimed_at - claim.due_at).total_seconds())
        metrics.observe(metrics.START_DELAY, claim.job, seconds=waited_s)


def counted(claim: Claim, fate: str, seconds: float) -> None:
    """Count how it ended, and how long it took."""
    metrics.count(metrics.ATTEMPTS, claim.job, fate)
    metrics.observe(metrics.ATTEMPT_SECONDS, claim.job, seconds=seconds)


def named(claim: Claim) -> AbstractContextManager[Any]:
    """The names of the run, for the log lines of a `with` block."""
    return bound_contextvars(
        tenant=claim.tenant_id,
        key=claim.key,
        run_id=claim.run_id,
        run=claim.id,
        job=claim.job,
        attempt=claim.attempt,
    )


def traced(claim: Claim) -> AbstractContextManager[Any]:
    """The span of the attempt, None while traces are off."""
    attributes = {
        "messaging.operation.type": "process",
        "onceonly.job": claim.job,
        "onceonly.tenant": claim.tenant_id,
        "onceonly.key": claim.key,
        "onceonly.run_id": claim.run_id,
        "onceonly.attempt": claim.attempt,
    }
    return tracing.span(f"run {claim.job}", "consumer", parent=claim.traceparent, attributes=attributes)


def told(span: Any, fate: str) -> None:
    """Note in a span how its attempt ended."""
    if span is not None:
        span.set_attribute("onceonly.outcome", fate)
    if fate in BAD:
        tracing.failed(span, fate)
