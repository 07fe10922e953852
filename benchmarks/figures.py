"""Figures of rounds: medians, and ratios within a round with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Case = dict[str, float]
"""What one case of one round came to: `per_second`, `p50_ms`, `p99_ms`, ..."""

Measured = dict[str, Case]
"""The cases of one round by name, like `http: floor`."""


def percentile_ms(ordered_s: Sequence[float], share: float) -> float:
    """The time that this share of the sorted times (seconds) stays within, in milliseconds; nan for none."""
    if not ordered_s:
        return math.nan
    return ordered_s[min(len(ordered_s) - 1, int(len(ordered_s) * share))] * 1000


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there are no values."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class Rounds:
    """All that was measured, in the order of the rounds."""

    rounds: Sequence[Measured]

    def names(self) -> list[str]:
        """Of all cases, in the order in which they were first measured."""
        return list(dict.fromkeys(name for measured in self.rounds for name in measured))

    def values(self, name: str, figure: str = "per_second") -> list[float]:
        return [measured[name][figure] for measured in self.rounds if figure in measured.get(name, {})]

    def spread(self, name: str, figure: str = "per_second") -> Spread | None:
        return Spread.of(self.values(name, figure))

    def ratio(self, name: str, base: str, figure: str = "per_second") -> Spread | None:
        """Of the case to the base, each round with itself: what slows a whole round is not in it."""
        pairs = [
            (measured[name][figure], measured[base][figure])
            for measured in self.rounds
            if figure in measured.get(name, {}) and figure in measured.get(base, {})
        ]
        return Spread.of([value / of for value, of in pairs if of])
