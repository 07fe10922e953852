"""What the jobs wrote: how many ran, each how often, and when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.processes import wait_until

LINE_BYTES = 31


class Witness:
    """The file to which each job adds a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from = 0

    def size(self) -> int:
        """Lines so far, since the last `forget`."""
        return (self._path.stat().st_size if self._path.exists() else 0) // LINE_BYTES - self._from

    def forget(self) -> None:
        """Begin to count afresh."""
        self._from += self.size()

    def wait_for(self, count: int, patience_s: float) -> None:
        wait_until(lambda: self.size() >= count, patience_s, f"{count} jobs are done", 0.01)

    def ran_at(self) -> dict[int, int]:
        """When each job ran, in ns of the monotonic clock. Raises RuntimeError where one ran twice."""
        with self._path.open("rb") as file:
            file.seek(self._from * LINE_BYTES)
            lines = [line.split() for line in file]
        times = {int(number): int(at) for number, at in lines}
        if len(times) != len(lines):
            number, count = Counter(int(number) for number, _ in lines).most_common(1)[0]
            raise RuntimeError(f"job {number} ran {count} times")
        return times
