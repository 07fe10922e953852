"""What the checks go by, and what they find."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onceonly_jobs.torture.facts import Facts, Row
from onceonly_jobs.torture.history import Effect, Op

SLACK_S = 0.1
"""How exactly the clocks of clients and database can be compared: they are read on one machine."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be: which check found it, about what, and the evidence."""

    check: str
    subject: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.check}: {self.subject}: {self.evidence}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the checker goes by."""

    ops: Sequence[Op]
    effects: Sequence[Effect]
    facts: Facts

    def ops_of(self, *kinds: str) -> Iterator[Op]:
        return (op for op in self.ops if op.kind in kinds)


Check = Callable[[Evidence], Iterable[Violation]]


def by_key(things: Iterable[Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = defaultdict(list)
    for thing in things:
        grouped[thing.key].append(thing)
    return grouped


def by(rows: Iterable[Row], column: str) -> dict[Any, list[Row]]:
    grouped: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[column]].append(row)
    return grouped


def acquired(ops: Iterable[Op]) -> list[Op]:
    return [op for op in ops if op.ok and op.answer["status"] == "acquired"]


def lease(op: Op) -> str:
    return str(op.answer["lease_id"])


def text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)
