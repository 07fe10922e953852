"""Locks, leases, and what a key was answered with."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from onceonly_jobs.torture.checks.evidence import (
    SLACK_S,
    Evidence,
    Violation,
    acquired,
    by_key,
    lease,
    text,
)
from onceonly_jobs.torture.history import Op


def one_winner_per_window(evidence: Evidence) -> Iterator[Violation]:
    """Of the callers of one key, one is told `locked` per window; a duplicate was told so because of one."""
    for key, ops in by_key(evidence.ops_of("lock")).items():
        won = sorted(
            (op for op in ops if op.ok and op.answer["status"] == "locked"), key=lambda op: op.ended_at
        )
        for first, second in itertools.pairwise(won):
            if second.ended_at - first.invoked_at < first.answer["ttl"] - SLACK_S:
                yield Violation("one-winner", key, f"op {first.n} and op {second.n} have both won the lock")
        for op in ops:
            if op.ok and op.answer["status"] == "duplicate" and not _explained(op, ops):
                yield Violation("one-winner", key, f"op {op.n} is a duplicate of nothing")


def _explained(duplicate: Op, ops: list[Op]) -> bool:
    return any(
        op.invoked_at <= duplicate.ended_at and duplicate.invoked_at <= op.ended_at + op.sent["ttl"] + SLACK_S
        for op in ops
        if op is not duplicate and _may_have_won(op)
    )


def _may_have_won(op: Op) -> bool:
    return bool(op.answer["status"] == "locked") if op.ok else op.tries > 0


def one_holder_at_a_time(evidence: Evidence) -> Iterator[Violation]:
    """A lease is granted again only when it was given up, or has run out."""
    ended = by_key(evidence.ops_of("cancel", "complete", "fail"))
    extended = by_key(evidence.ops_of("extend"))
    for key, ops in by_key(evidence.ops_of("lease")).items():
        grants = sorted(acquired(ops), key=lambda op: op.ended_at)
        for first, second in itertools.pairwise(grants):
            if _may_have_ended(first, second, ended.get(key, [])):
                continue
            kept = [op for op in extended.get(key, []) if op.ok and op.sent["lease_id"] == lease(first)]
            kept = [op for op in kept if op.ended_at < second.invoked_at]
            since = max([first.invoked_at, *(op.invoked_at for op in kept)])
            if second.ended_at - since < first.answer["ttl"] - SLACK_S:
                yield Violation(
                    "one-holder", key, f"op {second.n} got the lease that op {first.n} still held"
                )


def _may_have_ended(first: Op, second: Op, ended: list[Op]) -> bool:
    return any(
        op.sent["lease_id"] == lease(first) and op.may_have_happened and op.invoked_at < second.ended_at
        for op in ended
    )


def stale_holders_are_refused(evidence: Evidence) -> Iterator[Violation]:
    """Who was taken over can't extend, complete, fail or cancel any more."""
    leases = by_key(evidence.ops_of("lease"))
    for op in evidence.ops_of("complete", "fail", "extend", "cancel"):
        grants = acquired(leases.get(op.key, []))
        own = [grant for grant in grants if lease(grant) == op.sent["lease_id"]]
        if not own or not op.ok:
            continue
        newer = [g for g in grants if g.invoked_at > own[0].ended_at and g.ended_at < op.invoked_at]
        if newer:
            evidence_text = (
                f"op {op.n} ({op.kind}) was accepted after op {newer[0].n} had taken the lease over"
            )
            yield Violation("fencing", op.key, evidence_text)


def one_answer_per_key(evidence: Evidence) -> Iterator[Violation]:
    """Every caller of a finished key is told the same, and the database has it."""
    stored = {row["key"]: row for row in evidence.facts.runs}
    answers: dict[str, dict[tuple[Any, ...], Op]] = defaultdict(dict)
    for op in evidence.ops_of("lease", "run", "status", "result", "complete", "fail"):
        for told in _told(op):
            answers[op.key].setdefault(told, op)
    for key, told_by in answers.items():
        ends = {(told[0], told[2]) for told in told_by}
        results = {told[1] for told in told_by if told[1] is not None}
        if len(ends) > 1 or len(results) > 1:
            words = "; ".join(f"op {op.n} ({op.kind}): {told}" for told, op in told_by.items())
            yield Violation("one-answer", key, words)
        row = stored.get(key)
        if row is None:
            yield Violation("lost", key, "answered as finished, and not in the database")
        elif (row["state"], row["error_code"]) not in ends or not results <= {text(row["result"])}:
            kept = (row["state"], text(row["result"]), row["error_code"])
            yield Violation("one-answer", key, f"told {list(told_by)}, stored {kept}")


def _told(op: Op) -> Iterator[tuple[Any, ...]]:
    """(state, result, error code) where the operation has learnt how its key ended; a cancelled one is free again."""
    if not op.ok:
        return
    if op.kind == "complete":
        yield "completed", text(op.sent["result"]), None
    elif op.kind == "fail":
        yield "failed", None, op.sent["error_code"]
    elif op.answer.get("status") in ("completed", "failed") and op.answer.get("error_code") != "cancelled":
        yield op.answer["status"], text(op.answer.get("result")), op.answer.get("error_code")
