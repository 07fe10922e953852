"""Results on their way to the database: several at once, and none waits longer than the statement before it takes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from onceonly_jobs.dispatch.brief import brief
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.services import claims_many
from onceonly_jobs.services.claims import Ending
from onceonly_jobs.store.claims_many import Completion
from onceonly_jobs.worker.lifecycle import Completed, Outcome, answered, concluded, has_to_end, recorded
from onceonly_jobs.worker.runtime import Runtime

logger = logging.getLogger(__name__)

AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Ended:
    """A handler's call that is over. Times are those of time.time()."""

    claim: Claim
    task: str
    """The name that monitors know this call by."""
    began_at: float
    ended_at: float
    shown: bool
    """Monitors were told when it began."""


Tell = Callable[[list[tuple[Ended, Outcome]]], None]
"""Is called when it is known what became of some runs."""


class Completions:
    """Stores results in a thread of its own, for the length of a `with` block."""

    def __init__(self, runtime: Runtime, tell: Tell) -> None:
        self._runtime = runtime
        self._tell = tell
        self._changed = threading.Condition()
        self._ended: list[tuple[Ended, Completed]] = []
        self._storing = 0
        self._asked_at = 0.0
        self._over = False
        self._thread = threading.Thread(target=self._run, name="completions", daemon=True)

    def __enter__(self) -> Completions:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """What is not stored by now is left: see `wait`."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def add(self, ended: Ended, verdict: Completed) -> None:
        """Have a result stored, at once where no other is being stored."""
        with self._changed:
            self._ended.append((ended, verdict))
            self._changed.notify_all()

    def wait(self, most: int = 0, timeout_s: float | None = None) -> bool:
        """Until no more than so many results are to be stored. False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ended) + self._storing <= most, timeout_s)

    def stalled_s(self) -> float:
        """How long ago the database was asked, or asked again, to store what is still being stored."""
        return time.monotonic() - self._asked_at if self._storing else 0.0

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._tell(self._stored(batch))
            except Exception:
                logger.exception("%d results: not told", len(batch))
            finally:
                with self._changed:
                    self._storing = 0
                    self._changed.notify_all()

    def _next(self) -> list[tuple[Ended, Completed]]:
        """What is to be stored, as soon as there is something; empty when this is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._over)
            batch, self._ended = self._ended[:AT_ONCE], self._ended[AT_ONCE:]
            self._storing, self._asked_at = len(batch), time.monotonic()
            return batch

    def _stored(self, batch: list[tuple[Ended, Completed]]) -> list[tuple[Ended, Outcome]]:
        """What became of each; of those of which the database would not tell, nothing: their claims expire."""
        items = [claims_many.completion(e.claim, v.result, v.cost_usd) for e, v in batch]
        try:
            endings = answered(lambda: self._asked(items), unless=lambda: has_to_end(self._runtime))
        except Exception as error:  # one result that Postgres does not take holds up no other
            if has_to_end(self._runtime):
                logger.warning(
                    "%d results are not stored, their claims will expire: %s", len(batch), brief(error)
                )
                return []
            logger.warning("%d results are stored one by one: %s", len(batch), brief(error))
            asked = [(each, partial(recorded, self._runtime, each.claim, verdict)) for each, verdict in batch]
        else:
            asked = [
                (each, partial(concluded, self._runtime, each.claim, verdict, ending))
                for (each, verdict), ending in zip(batch, endings, strict=True)
            ]
        return [(each, outcome) for each, ask in asked if (outcome := _answer(each, ask)) is not None]

    def _asked(self, items: list[Completion]) -> list[Ending]:
        self._asked_at = time.monotonic()
        return self._runtime.database.run(
            claims_many.complete_many, items, self._runtime.settings.retention_s
        )


def _answer(ended: Ended, ask: Callable[[], Outcome]) -> Outcome | None:
    try:
        return ask()
    except Exception:
        logger.exception("run %s: its result can't be stored", ended.claim.id)
        return None
