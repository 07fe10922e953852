"""The system in numbers, as a scheduler shows them."""

from __future__ import annotations

from dataclasses import dataclass

from onceonly_jobs.services.workers import LOST_AFTER_S
from onceonly_jobs.store import figures
from onceonly_jobs.store.figures import Decided, Ended, Moment, Waiting
from onceonly_jobs.store.statement import Operation, read_only

MOST_TRANSACTIONS = 500_000
"""So many are gone through at once; the rest at the next reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How things stand, and what happened since the last reading."""

    waiting: list[Waiting]
    running: dict[str, int]
    workers: dict[str, int]
    moment: Moment
    decided: list[Decided]
    ended: list[Ended]
    read_until: int
    """where the next reading goes on"""


@read_only
def read(since: int | None) -> Operation[Figures]:
    """The figures; of what happened, that of transactions from `since` on. None: nothing yet, from now on all."""
    moment = yield from figures.moment()
    if since is None or since > moment.horizon:  # another Postgres, restored from a copy
        since = moment.horizon
    until = min(moment.horizon, since + MOST_TRANSACTIONS)
    decided = (yield from figures.decided(since, until)) if since < until else []
    ended = (yield from figures.ended(since, until)) if since < until else []
    return Figures(
        waiting=(yield from figures.waiting()),
        running=(yield from figures.running()),
        workers=(yield from figures.workers(LOST_AFTER_S)),
        moment=moment,
        decided=decided,
        ended=ended,
        read_until=until,
    )
