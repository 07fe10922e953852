"""Dead letters: find them, replay them, discard them. Each once, and told on the run's timeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from onceonly_jobs.domain.states import RunState
from onceonly_jobs.errors import DeadLetterConflict, DeadLetterReason, NotFound
from onceonly_jobs.services.leases import WIRE_STATES
from onceonly_jobs.store import dead as store
from onceonly_jobs.store import runs
from onceonly_jobs.store.dead import DeadDetails, DeadLetter, Fate, Wanted
from onceonly_jobs.store.events import Event
from onceonly_jobs.store.outbox import Due
from onceonly_jobs.store.statement import Operation, autocommit, read_only

TAIL = 20
"""So many of its latest events are shown of a dead letter."""

GOING_ON = frozenset({RunState.QUEUED, RunState.IN_PROGRESS, RunState.COMPLETED, RunState.UNKNOWN})
"""States in which a replay stands, whoever asks for it again."""


@read_only
def letters(wanted: Wanted, limit: int, offset: int) -> Operation[tuple[int, list[DeadLetter]]]:
    """How many dead letters match, and a page of them, oldest first."""
    total = yield from store.total(wanted)
    page = yield from store.letters(wanted, limit, offset)
    return total, page


@read_only
def show(tenant_id: str, key: str) -> Operation[tuple[DeadDetails, list[Event]]]:
    """A dead letter, and the tail of its timeline. Raises NotFound."""
    details = yield from store.by_key(tenant_id, key)
    if details is None:
        raise NotFound(key)
    events = yield from store.timeline_tail(details.letter, TAIL)
    return details, events


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The replay that stands, and what is to be published where it was made just now."""

    fate: Fate
    due: Due | None


def replay(
    tenant_id: str, actor: str, key: str, decision_id: int | None = None, publish_in_s: float = 0
) -> Operation[Replayed]:
    """Queue a dead letter again. Asked again, the replay that was made stands.

    decision_id: this failure of the run, and no later one. Raises NotFound, DeadLetterConflict.
    """
    due = yield from store.replay(tenant_id, key, actor, decision_id, publish_in_s)
    fate = yield from store.replayed(tenant_id, key)
    if fate is None:
        return (yield from _refuse(tenant_id, key))
    meant = fate.state in GOING_ON if decision_id is None else fate.replays == decision_id
    if due is None and not meant:
        return (yield from _refuse(tenant_id, key))
    return Replayed(fate=fate, due=due)


def discard(
    tenant_id: str, actor: str, key: str, reason: str | None = None, decision_id: int | None = None
) -> Operation[Fate]:
    """Take a dead letter off the list; it stays failed. Asked again, the first answer stands.

    decision_id: this failure of the run, and no later one. Raises NotFound, DeadLetterConflict.
    """
    yield from store.discard(tenant_id, key, actor, reason, decision_id)
    fate = yield from store.discarded(tenant_id, key)
    if fate is None or decision_id not in (None, fate.decision_id):
        return (yield from _refuse(tenant_id, key))
    return fate


def _refuse(tenant_id: str, key: str) -> Operation[NoReturn]:
    """Of a key under which nothing was changed."""
    run = yield from runs.find(tenant_id, key)
    if run is None:
        raise NotFound(key)
    still = yield from store.by_key(tenant_id, key)
    reason: DeadLetterReason = "not_a_dead_letter" if still is None else "other_failure"
    raise DeadLetterConflict(reason, key, status=WIRE_STATES[run.state])


@autocommit
def moment() -> Operation[datetime]:
    """Now: what dies after it is left alone by batches."""
    return (yield from store.now())


@autocommit
def replay_batch(wanted: Wanted, until: datetime, batch: int, actor: str) -> Operation[list[Due]]:
    """Queue up to so many again of those that failed before `until`."""
    return (yield from store.replay_batch(wanted, until, batch, actor))


@autocommit
def discard_batch(
    wanted: Wanted, until: datetime, batch: int, actor: str, reason: str | None
) -> Operation[int]:
    """Discard up to so many of those that failed before `until`; how many."""
    return (yield from store.discard_batch(wanted, until, batch, actor, reason))
