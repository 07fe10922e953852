"""Reading a timeline: whether what it tells of has come to its end."""

from __future__ import annotations

OPENING = frozenset({"run_queued", "run_replayed", "run_started", "tool_call"})
CLOSING = frozenset({"run_finished", "tool_result"})
FINAL = "run_finished"


class Standing:
    """Which runs of a timeline are still going on. It is shown the events in order, or those that matter here."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._finished = False

    def see(self, type_: str, key: str | None) -> None:
        """Take an event of a run into account. key: the run's; callers' own events need not have one."""
        if type_ in OPENING and key is not None:
            self._open.add(key)
        elif type_ in CLOSING and key is not None:
            self._open.discard(key)
        self._finished = self._finished or type_ == FINAL

    @property
    def over(self) -> bool:
        """A run has finished, and no other one has begun that has not."""
        return self._finished and not self._open
