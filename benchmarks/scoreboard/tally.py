"""What the witness saw: jobs lost, begun twice and done twice, and how long the interrupted ones had to wait."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

Line = tuple[str, int, float]
"""`start` or `done`, the job's number, and when."""


@dataclass(frozen=True)
class Tally:
    """Counts of jobs; times in seconds since the kill, None where it did not happen within the wait."""

    jobs: int
    lost: int
    started_twice: int
    completed_twice: int
    interrupted: int
    started_again_s: float | None
    all_done_s: float | None


def read(witness: Path) -> list[Line]:
    if not witness.exists():
        return []
    parts = [line.split() for line in witness.read_text().splitlines()]
    return [(what, int(number), float(at)) for what, number, at in parts]


def done(lines: list[Line]) -> Counter[int]:
    return Counter(number for what, number, _ in lines if what == "done")


def tally(lines: list[Line], jobs: int, killed_at: float) -> Tally:
    completed = done(lines)
    starts = Counter(number for what, number, _ in lines if what == "start")
    before = [(what, number) for what, number, at in lines if at <= killed_at]
    begun = {number for what, number in before if what == "start"}
    interrupted = begun - {number for what, number in before if what == "done"}
    again = [first_start_after(lines, number, killed_at) for number in interrupted]
    first_done: dict[int, float] = {}
    for what, number, at in lines:
        if what == "done":
            first_done.setdefault(number, at)
    lost = jobs - len(completed)
    return Tally(
        jobs=jobs,
        lost=lost,
        started_twice=sum(count > 1 for count in starts.values()),
        completed_twice=sum(count > 1 for count in completed.values()),
        interrupted=len(interrupted),
        started_again_s=None if None in again else max((at for at in again if at is not None), default=None),
        all_done_s=max(0.0, max(first_done.values()) - killed_at) if lost == 0 else None,
    )


def first_start_after(lines: list[Line], number: int, killed_at: float) -> float | None:
    later = (at - killed_at for what, n, at in lines if what == "start" and n == number and at > killed_at)
    return next(later, None)
