"""Counters, to the unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onceonly_jobs.torture.checks.evidence import (
    Evidence,
    Violation,
)
from onceonly_jobs.torture.history import Op


def the_meter_is_exact(evidence: Evidence) -> Iterator[Violation]:
    """Counters agree with what was done, to the unit; where no answer came, the database says whether it was."""
    facts = evidence.facts
    leases = sum(row["attempt"] == 0 for row in facts.starts)
    ai, make = (facts.usage.get(kind, {}) for kind in ("ai", "make"))
    exact = {
        "ai usage": (ai.get("usage", 0), facts.queued + leases + facts.calls),
        "ai charged": (ai.get("charged", 0), facts.queued + leases + facts.calls),
        "make usage": (make.get("usage", 0), facts.duplicates),
    }
    for name, (counted, done) in exact.items():
        if counted != done:
            yield Violation("metering", name, f"counted {counted}, done {done}")
    yield from _within(
        "make requests", make.get("requests", 0), list(evidence.ops_of("lock")), lambda op: op.ok
    )
    asked = list(evidence.ops_of("lease", "run", "tool"))
    ticks = sum(tick["state"] == "fired" for tick in facts.ticks)
    yield from _within("ai requests", ai.get("requests", 0) - ticks, asked, _answered)
    locks = list(evidence.ops_of("lock"))
    yield from _within(
        "make usage", facts.duplicates, locks, lambda op: op.answer.get("status") == "duplicate"
    )
    acquired = list(evidence.ops_of("lease", "run"))
    taken = facts.queued + leases - ticks
    yield from _within("ai acquired", taken, acquired, lambda op: op.answer.get("status") == "acquired")


def _answered(op: Op) -> bool:
    return op.status is not None and op.status < 500


def _within(name: str, counted: int, ops: list[Op], counts: Callable[[Op], bool]) -> Iterator[Violation]:
    """Between what the callers know of, and that with all that may have happened besides."""
    sure = sum(_answered(op) and counts(op) for op in ops)
    in_doubt = sum(op.tries - _answered(op) for op in ops)
    if not sure <= counted <= sure + in_doubt:
        yield Violation("metering", name, f"counted {counted}; {sure} answered, {in_doubt} in doubt")
