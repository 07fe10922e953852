"""What a worker's main process and the children of its pool tell each other: memory that a fork leaves shared."""

from __future__ import annotations

import ctypes
import os
import time
from datetime import UTC, datetime
from multiprocessing.sharedctypes import RawArray, RawValue

from onceonly_jobs.services.claims_many import Progress

PLACES = 4096
"""For what children tell of themselves, by their process ids. Of two that share a place, one has none: then its death
counts as a crash of all that it held."""


class Shared:
    """Made before the first child. A double is written whole, and by one process at a time is enough."""

    def __init__(self) -> None:
        self._stop_at = RawValue(ctypes.c_double, 0.0)
        self._claimed_at = RawValue(ctypes.c_double, 0.0)
        self._watched = RawValue(ctypes.c_bool, False)
        self._progress = RawArray(ctypes.c_int64, 3 * PLACES)

    def serve(self) -> None:
        """Take runs, again if there was a worker before this one."""
        self._stop_at.value = 0.0

    def drain(self, after_s: float) -> None:
        """Take no more runs, and hand back in after_s seconds what still runs; a second call: at once."""
        # Not a lock in sight: this is called by a signal handler. The clock is the machine's, not the process's.
        self._stop_at.value = time.monotonic() + (0.0 if self.draining else after_s)

    @property
    def draining(self) -> bool:
        return bool(self._stop_at.value)

    @property
    def out_of_time(self) -> bool:
        """Whether what still runs is to be handed back now."""
        return self.overdue(0)

    def overdue(self, by_s: float) -> bool:
        """Whether what still runs was to be handed back so many seconds ago."""
        return self.draining and time.monotonic() >= self._stop_at.value + by_s

    def claimed(self, at: datetime) -> None:
        """Note the latest claim of any of the processes."""
        self._claimed_at.value = at.timestamp()

    @property
    def last_claim_at(self) -> datetime | None:
        at = self._claimed_at.value
        return datetime.fromtimestamp(at, UTC) if at else None

    @property
    def watched(self) -> bool:
        """Whether the worker sends Celery's events of tasks, as it was started or told to later."""
        return bool(self._watched.value)

    @watched.setter
    def watched(self, value: bool) -> None:
        self._watched.value = value

    def begin(self, token: int) -> None:
        """Note what this process is at work on, of the runs that it has claimed together: 0, of none yet."""
        pid = os.getpid()
        place = 3 * (pid % PLACES)
        # Killed in between, it was at work on nothing: the handler is called after this.
        self._progress[place + 2] = 0
        self._progress[place : place + 2] = [pid, token]
        self._progress[place + 2] = int(token > 0)

    def rest(self) -> None:
        """The handler has returned; its result may still have to be stored."""
        self._progress[3 * (os.getpid() % PLACES) + 2] = 0

    def leave(self) -> None:
        """This process holds no runs that it has claimed together."""
        place = 3 * (os.getpid() % PLACES)
        self._progress[place : place + 3] = [0, 0, 0]

    def progress(self, pid: int) -> Progress | None:
        """How far a process had come; None where it held no runs that it had claimed together."""
        place = 3 * (pid % PLACES)
        noted, token, at_work = self._progress[place : place + 3]
        return Progress(token, bool(at_work)) if noted == pid else None
