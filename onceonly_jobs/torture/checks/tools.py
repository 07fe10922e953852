"""Tool calls, as the tools themselves have seen them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from onceonly_jobs.torture.checks.evidence import (
    Evidence,
    Violation,
    by_key,
    text,
)

ONCE_ONLY = {"irreversible", "reconcilable"}


def tools_are_called_as_they_allow(evidence: Evidence) -> Iterator[Violation]:
    """What can't be repeated is called once at most; what can, with one idempotency key for all of it."""
    by_idempotency_key: Counter[str] = Counter()
    keys: dict[str, set[str]] = defaultdict(set)
    for effect in evidence.effects:
        if effect.kind != "call":
            continue
        keys[effect.key].add(effect.data["idempotency_key"])
        if effect.data["tool"].removeprefix("torture.") in ONCE_ONLY:
            by_idempotency_key[f"{effect.key} {effect.data['idempotency_key']}"] += 1
    for call, times in by_idempotency_key.items():
        if times > 1:
            yield Violation("called-twice", call, f"called {times} times, and can't be repeated")
    for call, seen in keys.items():
        if len(seen) > 1:
            yield Violation("idempotency-key", call, f"called with {len(seen)} different keys")


def tool_answers_agree(evidence: Evidence) -> Iterator[Violation]:
    """All who make the same call get the same result, and it was really made."""
    called = {effect.key for effect in evidence.effects if effect.kind == "call"}
    for key, ops in by_key(evidence.ops_of("tool")).items():
        good = [op for op in ops if op.ok and op.answer.get("ok") and op.answer.get("allowed")]
        results = {text(op.answer["result"]) for op in good}
        if len(results) > 1:
            yield Violation("one-answer", key, f"results {sorted(map(str, results))}")
        if good and key not in called:
            yield Violation(
                "witnessed", key, f"op {good[0].n} was told that it was executed, and it never was"
            )
