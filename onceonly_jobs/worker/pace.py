"""How many runs a process takes at once: as many as it is likely to be done with before anybody would miss them."""

from __future__ import annotations

BATCH_S = 0.02
"""How long the runs that are claimed together should take."""
MOST = 64
WEIGHT = 0.2
"""Of the latest run in the average."""


class Pace:
    """How long handlers took lately, job by job. Nothing is known of a job until one of its runs has ended."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._quick: float | None = None

    def note(self, job: str, seconds: float) -> None:
        """A handler of this job took so long."""
        self._seconds[job] = _average(self._seconds.get(job), seconds)
        if not self.slow(job):
            self._quick = _average(self._quick, seconds)

    def slow(self, job: str) -> bool:
        """Whether one run of this job is as much as should be taken at once."""
        return self._seconds.get(job, 0.0) > BATCH_S

    @property
    def count(self) -> int:
        """How many runs of jobs that are not slow to take at once: 1 while nothing is known."""
        if self._quick is None:
            return 1
        return max(1, min(MOST, int(BATCH_S / max(self._quick, BATCH_S / MOST))))


def _average(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + WEIGHT * (seconds - before)
