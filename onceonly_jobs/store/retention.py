"""What nobody asks for any more, deleted in batches that nobody waits for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.states import Owner
from onceonly_jobs.domain.timelines import OPENING
from onceonly_jobs.store.rows import FINISHED, RETAINED
from onceonly_jobs.store.statement import Statement

IN_HAND_S = 60
"""How long a run stays after its retention time, for those who have just read that it is there."""
WORKERS_KEPT_S = 86_400
"""How long a worker that is gone is remembered."""


class Kind(StrEnum):
    """What is deleted, in this order: calls that a run refers to stay until it is gone."""

    RUNS = "runs"
    """finished runs after their retention time, with what was decided on their actions"""
    ACTIONS = "run_actions"
    """what was decided on the actions of runs whose key was taken again"""
    LOCKS = "locks"
    """locks that have run out: whoever comes is the first one, with or without the row"""
    EVENTS = "run_events"
    """events of timelines that were silent for long, with no run that may still go on and no settlement that stands"""
    FEED = "feed_events"
    WORKERS = "workers"


@dataclass(frozen=True, slots=True)
class Kept:
    """How long each is kept, in seconds."""

    actions_s: int
    events_s: int
    workers_s: int = WORKERS_KEPT_S


# Tokens only grow if what a key gets next, after its row is gone, is more than what it has had.
_WILL_GROW = "fencing_token < (SELECT last_value + CAST(is_called AS integer) FROM fencing_tokens)"

# A cancelled run's worker may be at it still. A call that an action waits for is read once it has ended.
_RUNS = f"""runs r WHERE {FINISHED}
    AND retain_until_at <= onceonly_now() - interval '{IN_HAND_S} seconds' AND {_WILL_GROW}
    AND (owner = '{Owner.CALLER}' OR state <> 'cancelled' OR lease_until_at IS NULL
         OR lease_until_at <= onceonly_now())
    AND NOT EXISTS (SELECT FROM run_actions a WHERE a.call_id = r.id AND a.done_at IS NULL)"""


def _older(column: str, than: str) -> str:
    return f"{column} < onceonly_now() - make_interval(secs => CAST(:{than} AS integer))"


_ACTIONS = f"""run_actions a WHERE {_older("at", "actions_s")}
    AND NOT EXISTS (SELECT FROM runs r WHERE r.decision_id = a.run_decision_id AND r.job = 'onceonly.actions')"""

# A head's collation is C, and that of its events' index is not: compared as they are, the index is of no use.
_RUN_ID = 't.run_id COLLATE "default"'

_OPENING = ", ".join(f"'{name}'" for name in sorted(OPENING))

# Whichever runs share a timeline, each has told it of its beginning; and who settled a call is told nowhere else. One
# question per timeline, not a join over all.
_TIMELINES = f"""timelines t WHERE {_older("last_at", "events_s")}
    AND (
        SELECT true FROM run_events e JOIN runs r ON r.tenant_id = e.tenant_id AND r.key = e.data->>'key'
        WHERE e.tenant_id = t.tenant_id AND e.run_id = {_RUN_ID} AND (
                e.type IN ({_OPENING}) AND r.state IN ('queued', 'in_progress', 'unknown')
                OR e.type = 'settled' AND e.data->>'decision_id' = r.decision_id::text AND {RETAINED}
            )
        LIMIT 1
    ) IS NULL"""


def _old(rows: str, order: str, columns: str = "ctid") -> str:
    """SELECT of a batch, oldest first. Rows that somebody holds are left for later; one that was changed since the
    snapshot is judged again as it is now."""
    return f"SELECT {columns} FROM {rows} ORDER BY {order} LIMIT :batch FOR UPDATE SKIP LOCKED"


def _delete(rows: str, order: str) -> sa.TextClause:
    table = rows.split()[0]
    return sa.text(f"""
WITH deleted AS (DELETE FROM {table} WHERE ctid = ANY (ARRAY ({_old(rows, order)})) RETURNING 1)
SELECT count(*) FROM deleted
""")


_DELETE_RUNS = sa.text(f"""
WITH deleted AS (
    DELETE FROM runs WHERE ctid = ANY (ARRAY ({_old(_RUNS, "retain_until_at")})) RETURNING tenant_id, decision_id
), actions AS (
    DELETE FROM run_actions a USING deleted d
    WHERE a.tenant_id = d.tenant_id AND a.run_decision_id = d.decision_id
)
SELECT count(*) FROM deleted
""")

# A long timeline goes in several batches. Its head is locked: who adds an event now waits, and begins a new one.
_DELETE_EVENTS = sa.text(f"""
WITH old AS MATERIALIZED ({_old(_TIMELINES, "last_at", f"tenant_id, {_RUN_ID} AS run_id, events_count")}
), chosen AS MATERIALIZED (
    SELECT e.id, e.tenant_id, e.run_id FROM old CROSS JOIN LATERAL (
        SELECT * FROM run_events e WHERE e.tenant_id = old.tenant_id AND e.run_id = old.run_id LIMIT :batch
    ) e LIMIT :batch
), deleted AS (
    DELETE FROM run_events WHERE id = ANY (ARRAY (SELECT id FROM chosen))
), counted AS (
    SELECT tenant_id, run_id, events_count, (
        SELECT count(*) FROM chosen c WHERE c.tenant_id = old.tenant_id AND c.run_id = old.run_id
    ) AS gone FROM old
), ended AS (
    DELETE FROM timelines t USING counted c
    WHERE t.tenant_id = c.tenant_id AND t.run_id = c.run_id AND c.gone >= c.events_count
), shortened AS (
    UPDATE timelines t SET events_count = c.events_count - c.gone FROM counted c
    WHERE t.tenant_id = c.tenant_id AND t.run_id = c.run_id AND c.gone BETWEEN 1 AND c.events_count - 1
)
SELECT count(*) FROM chosen
""")

_DELETE = {
    Kind.RUNS: _DELETE_RUNS,
    Kind.ACTIONS: _delete(_ACTIONS, "at"),
    Kind.LOCKS: _delete("locks WHERE locked_until_at <= onceonly_now()", "locked_until_at"),
    Kind.EVENTS: _DELETE_EVENTS,
    Kind.FEED: _delete(f"feed_events WHERE {_older('at', 'events_s')}", "at"),
    Kind.WORKERS: _delete(f"workers WHERE {_older('seen_at', 'workers_s')}", "seen_at"),
}

_COUNT = {
    Kind.RUNS: sa.text(f"SELECT count(*) FROM {_RUNS}"),
    Kind.ACTIONS: sa.text(f"SELECT count(*) FROM {_ACTIONS}"),
    Kind.LOCKS: sa.text("SELECT count(*) FROM locks WHERE locked_until_at <= onceonly_now()"),
    Kind.EVENTS: sa.text(f"SELECT coalesce(sum(events_count), 0) FROM {_TIMELINES}"),
    Kind.FEED: sa.text(f"SELECT count(*) FROM feed_events WHERE {_older('at', 'events_s')}"),
    Kind.WORKERS: sa.text(f"SELECT count(*) FROM workers WHERE {_older('seen_at', 'workers_s')}"),
}

_NEEDS = {
    Kind.ACTIONS: "actions_s",
    Kind.EVENTS: "events_s",
    Kind.FEED: "events_s",
    Kind.WORKERS: "workers_s",
}


def _scalar(result: sa.CursorResult[Any]) -> int:
    return int(result.scalar_one())


def _bounds(kind: Kind, kept: Kept) -> dict[str, int]:
    needed = _NEEDS.get(kind)
    return {} if needed is None else {needed: getattr(kept, needed)}


def delete(kind: Kind, kept: Kept, batch: int) -> Statement[int]:
    """Delete up to `batch` rows of a kind that are old; how many there were."""
    return Statement(
        f"retention.delete_{kind}", _DELETE[kind], _scalar, {**_bounds(kind, kept), "batch": batch}
    )


def count(kind: Kind, kept: Kept) -> Statement[int]:
    """How many rows of a kind are old."""
    return Statement(f"retention.count_{kind}", _COUNT[kind], _scalar, _bounds(kind, kept))
