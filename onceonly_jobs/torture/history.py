"""What the clients asked and were told, and what the witness saw: lines of JSON that the checker reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """What is known of an operation after its last attempt."""

    OK = "ok"
    REFUSED = "refused"
    """the server has answered that it did nothing: a 4xx"""
    UNKNOWN = "unknown"
    """no answer, or a 5xx: it may have happened"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation of one client. Times are Unix seconds; tries counts requests that may have arrived."""

    n: int
    client: int
    kind: str
    key: str
    sent: dict[str, Any]
    invoked_at: float
    ended_at: float
    outcome: Outcome
    tries: int = 1
    status: int | None = None
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def may_have_happened(self) -> bool:
        return self.outcome is not Outcome.REFUSED

    def line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A side effect, in the order in which the witness learnt of it.

    kind: `start` or `end` of a handler, or `call` of a tool. data: what the handler or the request said of itself.
    """

    seq: int
    at: float
    kind: str
    key: str
    data: dict[str, Any]


def read_ops(path: Path) -> list[Op]:
    """The history of all clients, as they ended."""
    return [Op(**{**row, "outcome": Outcome(row["outcome"])}) for row in _rows(path)]


def read_effects(path: Path) -> list[Effect]:
    return [Effect(**row) for row in _rows(path)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines: a process that was killed may leave half a one at the end."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        yield json.loads(line)
