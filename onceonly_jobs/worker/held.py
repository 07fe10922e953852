"""The runs that a process has claimed together: those that wait, the one it is at work on, those still to be stored."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.worker.keeper import Keeper
from onceonly_jobs.worker.shared import Shared


@dataclass(slots=True)
class AtWork:
    """The run whose handler was called."""

    claim: Claim
    keeper: Keeper
    task: str
    """The name that monitors know it by."""
    since: float
    began_at: float
    """The same as Unix time."""
    kept: bool = False
    """Its keeper has been started: it is slow."""
    shown: bool = False
    """Monitors were told that it has begun."""


class Held:
    """Each claim is in one place at a time, whichever thread moves it. Times are those of time.monotonic()."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._waiting: deque[Claim] = deque()
        self._waiting_since = 0.0
        self._at_work: AtWork | None = None
        self._unstored: dict[int, Claim] = {}

    def add(self, claims: Collection[Claim]) -> None:
        """Runs that were just claimed, in the order in which they are to be begun: that of their tokens."""
        with self._lock:
            self._waiting.extend(claims)
            self._waiting_since = time.monotonic()

    def next(self) -> Claim | None:
        """The next run to begin, which from here on counts as begun."""
        with self._lock:
            if not self._waiting:
                return None
            claim = self._waiting.popleft()
            self._shared.begin(claim.fencing_token)
            return claim

    def begin(self, claim: Claim, keeper: Keeper, task: str) -> AtWork:
        """The handler is called now."""
        with self._lock:
            self._at_work = AtWork(claim, keeper, task, time.monotonic(), time.time())
            return self._at_work

    def returned(self, *, stored: bool) -> None:
        """The handler's call is over. stored: and so is all that is to be stored of it."""
        with self._lock:
            if self._at_work is not None and not stored:
                self._unstored[self._at_work.claim.id] = self._at_work.claim
            self._at_work = None
        self._shared.rest()

    def ended(self, claims: Collection[Claim]) -> None:
        """The database knows how these ended."""
        with self._lock:
            for claim in claims:
                self._unstored.pop(claim.id, None)

    def slow(self, patience_s: float) -> AtWork | None:
        """The run at work, the first time that its handler is found to take longer than this."""
        with self._lock:
            work = self._at_work
            if work is None or work.kept or time.monotonic() - work.since < patience_s:
                return None
            work.kept = True
            return work

    @property
    def kept(self) -> bool:
        """The run at work has a keeper that looks after it."""
        with self._lock:
            return self._at_work is not None and self._at_work.kept

    def waiting_for(self) -> float:
        """Seconds for which runs have waited to be begun; 0 where none do."""
        with self._lock:
            return time.monotonic() - self._waiting_since if self._waiting else 0.0

    def take_waiting(self) -> list[Claim]:
        """What waits, for somebody else to begin."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
            return waiting

    def unattended(self) -> list[Claim]:
        """Claims that no keeper keeps."""
        with self._lock:
            return [*self._waiting, *self._unstored.values()]

    def drop(self, lost: Collection[int]) -> None:
        """Begin none of these: their claims are lost."""
        with self._lock:
            self._waiting = deque(claim for claim in self._waiting if claim.id not in lost)
