"""Several runs of a worker at once: claimed, kept, completed or given back in one statement, each under its own guard.

Only runs about which nothing is to be looked up or judged one by one: of no agent, no tool calls, at their first start.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.store.claims import KEEP_CLAIM, Holder
from onceonly_jobs.store.events import elapsed_ms, event_row, recording
from onceonly_jobs.store.rows import CLAIM_COLUMNS, FINISH, NEXT_TOKEN, finished, to_claim, with_error
from onceonly_jobs.store.statement import Statement

WINDOW = 500
"""So many of the runs that are due for longest are looked at: a backlog of other queues or jobs must not make a claim
slow. What lies behind it travels as messages."""

# A run that was started before goes alone: it may be what killed its worker, and its neighbours with it. For the
# same reason none that a single death would end. What was published is left to its message until that is overdue.
_CLAIMABLE = """r.owner = 'server' AND r.state = 'queued' AND r.queue = :queue AND r.job = ANY (CAST(:jobs AS text[]))
    AND r.due_at <= onceonly_now() AND r.publish_at <= onceonly_now() AND r.agent_id IS NULL AND r.effect IS NULL
    AND r.attempt = 0 AND r.failures = 0 AND r.crashes = 0 AND r.max_crashes > 1"""


def _by_id_alone(condition: str) -> str:
    """SQL for a condition in which the planner finds no use for any other index than the primary key.

    Of what is queued or in progress its statistics are always old. With another index it would look at all of that, for
    each row.
    """
    return f"CASE WHEN {condition} THEN true END"


# The window is read without locks; row by row, in its order, they are then judged and locked until there are enough.
_CLAIM = sa.text(f"""
WITH due AS MATERIALIZED (
    SELECT id FROM runs WHERE state = 'queued' AND publish_at <= onceonly_now() ORDER BY publish_at LIMIT {
    WINDOW
}
), free AS (
    SELECT each.id FROM due CROSS JOIN LATERAL (
        SELECT r.id FROM runs r WHERE r.id = due.id AND {_by_id_alone(_CLAIMABLE)} FOR UPDATE SKIP LOCKED
    ) each LIMIT :count
), claimed AS (
    UPDATE runs r SET
        state = 'in_progress', version = version + 1, fencing_token = {NEXT_TOKEN}, attempt = 1,
        worker_lease_id = :worker_lease_id, started_at = onceonly_now(),
        worker_id = CAST(:worker_id AS text), worker_pid = CAST(:worker_pid AS integer), {KEEP_CLAIM},
        deadline_at = onceonly_now() + make_interval(secs => lease_ttl_s), time_limit_s = NULL,
        publish_at = NULL, publications = 0
    FROM free WHERE r.id = free.id
    RETURNING r.*
), starting AS ({
    event_row("'run_started'", "'started'", source="claimed", duration=elapsed_ms("due_at", "started_at"))
}), {recording("starting")}
SELECT {CLAIM_COLUMNS} FROM claimed
""")


def _claims(result: sa.CursorResult[Any]) -> list[Claim]:
    return sorted(map(to_claim, result.mappings()), key=lambda claim: claim.fencing_token)


def claim_due(
    count: int, queue: str, jobs: Collection[str], worker_lease_id: str, lease_s: float, holder: Holder
) -> Statement[list[Claim]]:
    """Take up to `count` due runs of these jobs from a queue, all under one lease id. In the order of their tokens.

    jobs: without time limits of their own, and no tools.
    """
    return Statement(
        "claims_many.claim_due",
        _CLAIM,
        _claims,
        {
            "count": count,
            "queue": queue,
            "jobs": sorted(jobs),
            "worker_lease_id": worker_lease_id,
            "lease_s": lease_s,
            "worker_id": holder.worker_id,
            "worker_pid": holder.pid,
        },
    )


# By the index of what is running, of which there is little.
_CLAIMED = sa.text(f"""
SELECT {CLAIM_COLUMNS} FROM runs
WHERE state = 'in_progress' AND owner = 'server' AND lease_until_at > onceonly_now()
    AND worker_lease_id = :worker_lease_id
""")


def claimed(worker_lease_id: str) -> Statement[list[Claim]]:
    """The current claims under this lease id, made by a `claim_due` whose answer was lost."""
    return Statement("claims_many.claimed", _CLAIMED, _claims, {"worker_lease_id": worker_lease_id})


_THESE = """SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:tokens AS bigint[]), CAST(:leases AS text[]))
        AS these (id, fencing_token, worker_lease_id)"""

_CURRENT = "r.owner = 'server'", "r.state = 'in_progress'", "r.lease_until_at > onceonly_now()"
_IN_TIME = "r.deadline_at > onceonly_now()"


def _of_these(*more: str) -> str:
    mine = "r.fencing_token = g.fencing_token", "r.worker_lease_id = g.worker_lease_id"
    return f"r.id = g.id AND {_by_id_alone(' AND '.join((*mine, *_CURRENT, *more)))}"


def _these(claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "ids": [claim.id for claim in claims],
        "tokens": [claim.fencing_token for claim in claims],
        "leases": [claim.lease_id for claim in claims],
    }


def _ids(result: sa.CursorResult[Any]) -> set[int]:
    return {int(row[0]) for row in result}


_KEEP = sa.text(f"""
WITH g AS ({_THESE}), held AS (
    SELECT r.id FROM runs r JOIN g ON {_of_these()} ORDER BY r.id FOR UPDATE OF r
)
UPDATE runs r SET {KEEP_CLAIM} FROM held WHERE r.id = held.id RETURNING r.id
""")


def keep(claims: Sequence[Claim], lease_s: float) -> Statement[set[int]]:
    """Keep the claims for another lease_s seconds. The ids of those that are still current."""
    return Statement("claims_many.keep", _KEEP, _ids, {**_these(claims), "lease_s": lease_s})


@dataclass(frozen=True, slots=True)
class Completion:
    """A run's result, to be stored under its claim."""

    claim: Claim
    result: dict[str, Any]
    result_hash: str
    actual_micro_usd: int | None = None
    """What it cost; None keeps the reservation."""


_COMPLETE = sa.text(f"""
WITH g AS (
    SELECT * FROM unnest(
        CAST(:ids AS bigint[]), CAST(:tokens AS bigint[]), CAST(:leases AS text[]), CAST(:results AS text[]),
        CAST(:hashes AS text[]), CAST(:actual AS bigint[])
    ) AS these (id, fencing_token, worker_lease_id, given, given_hash, actual_micro_usd)
), done AS (
    UPDATE runs r SET state = 'completed', result = CAST(g.given AS json), result_hash = g.given_hash,
        error_code = NULL, error_message = NULL, {FINISH}
    FROM g WHERE {_of_these(_IN_TIME)}
    RETURNING r.*, g.actual_micro_usd
), {finished("done", actual="actual_micro_usd", told=None)}
SELECT id FROM done
""")


def complete(completions: Sequence[Completion], retention_s: int) -> Statement[set[int]]:
    """Store results and settle their costs. The ids of the runs whose claims were current and in time.

    In the order of ids, in which any other statement locks several runs.
    """
    ordered = sorted(completions, key=lambda each: each.claim.id)
    return Statement(
        "claims_many.complete",
        _COMPLETE,
        _ids,
        {
            **_these([each.claim for each in ordered]),
            "results": [compact_json(each.result).decode() for each in ordered],
            "hashes": [each.result_hash for each in ordered],
            "actual": [each.actual_micro_usd for each in ordered],
            "retention_s": retention_s,
        },
    )


_BACK = """state = 'queued', version = version + 1, lease_until_at = NULL, deadline_at = NULL,
        publish_at = onceonly_now()"""


def _given_back(why: str) -> str:
    """CTEs that tell of runs which `back` has just put into the queue again. why: SQL."""
    told = event_row("'run_retried'", "'queued'", source="back", message=why)
    return f"telling AS ({told}), {recording('telling')}"


# A cancelled one lets go of its key. Nothing is left on the row of a start that was none.
_RETURN = sa.text(f"""
WITH g AS ({_THESE}), back AS (
    UPDATE runs r SET {_BACK}, attempt = 0, started_at = NULL
    FROM g WHERE {_of_these()}
    RETURNING r.*
), let_go AS (
    UPDATE runs r SET lease_until_at = onceonly_now()
    FROM g WHERE r.id = g.id AND r.fencing_token = g.fencing_token AND r.worker_lease_id = g.worker_lease_id
        AND r.state = 'cancelled' AND r.owner = 'server'
), {_given_back("'claimed, and given back before it began'")}
SELECT id FROM back
""")


def give_back(claims: Sequence[Claim]) -> Statement[set[int]]:
    """Put runs back into the queue whose handlers were not called: as if they had not been claimed.

    The ids of those that were current.
    """
    ordered = sorted(claims, key=lambda claim: claim.id)
    return Statement("claims_many.give_back", _RETURN, _ids, _these(ordered))


_NEIGHBOUR = "'its worker died with another run'"

# Whose handler had returned, its result unsaid, has been started, and it is known that it is not what killed the
# process: neither a failure nor a crash. From then on it goes alone. The lease is no part of the guard: who holds it is
# known to be dead.
_SPARE = sa.text(f"""
WITH held AS (
    SELECT id FROM runs
    WHERE state = 'in_progress' AND owner = 'server' AND lease_until_at IS NOT NULL
        AND worker_id = :worker_id AND worker_pid = :pid
        AND (fencing_token <> :token OR NOT CAST(:at_work AS boolean))
        AND agent_id IS NULL AND effect IS NULL AND attempt = 1 AND id <> :run
    ORDER BY id FOR UPDATE
), back AS (
    UPDATE runs r SET {_BACK}, attempt = CASE WHEN fencing_token > :token THEN 0 ELSE 1 END,
        started_at = CASE WHEN fencing_token > :token THEN NULL ELSE started_at END,
        errors = CASE WHEN fencing_token > :token THEN errors
            ELSE {with_error("'handed_back'", "'worker_lost'", _NEIGHBOUR)} END
    FROM held WHERE r.id = held.id
    RETURNING r.*
), {_given_back(_NEIGHBOUR)}
SELECT id FROM back
""")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a process has come with the runs that it claimed together, which it starts in the order of tokens."""

    token: int
    """Of the latest that it has started."""
    at_work: bool
    """Its handler has not returned yet."""


def spare(worker_id: str, pid: int, run: int, progress: Progress) -> Statement[set[int]]:
    """Put back into the queue what a dead process held and was not at work on. Gives the ids.

    run: of the message that it had, which is not among them.
    """
    params = {
        "worker_id": worker_id,
        "pid": pid,
        "run": run,
        "token": progress.token,
        "at_work": progress.at_work,
    }
    return Statement("claims_many.spare", _SPARE, _ids, params)
