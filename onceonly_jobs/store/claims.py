"""A worker's side of a run: claim it, keep it, and end it with the current fencing token or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.store.events import elapsed_ms, event_row, recording
from onceonly_jobs.store.governance import AGENTS_HELD, agents_first
from onceonly_jobs.store.rows import (
    CLAIM_COLUMNS,
    CONFIRM_LATER,
    FINISH,
    NEVER_SENT,
    NEXT_TOKEN,
    REPEATABLE,
    confirm_later,
    finished,
    held_unknown,
    repeatable,
    retried,
    to_claim,
    with_error,
)
from onceonly_jobs.store.statement import Statement, count, one_or_none
from onceonly_jobs.store.stopping import blocked_decision, gate, stopping
from onceonly_jobs.store.tools import meant
from onceonly_jobs.store.webhooks import failures

_CLAIMABLE = "owner = 'server' AND state = 'queued' AND job = :job AND due_at <= onceonly_now()"

_STRICTEST_FIRST = "ARRAY['irreversible', 'reconcilable', 'idempotent', 'read']"

# A tool or function may have been changed since the decision: of its effects, the strictest counts from here on.
# Of a function that is what the worker says which is about to call it.
_EFFECT = f"""CASE WHEN effect IS NOT NULL THEN ({_STRICTEST_FIRST})[least(
            array_position({_STRICTEST_FIRST}, effect),
            array_position({_STRICTEST_FIRST}, ({meant("t.effect", "runs.tenant_id", "runs.agent_id", "runs.tool")})),
            array_position({_STRICTEST_FIRST}, CAST(:effect AS text))
        )] END"""

# An earlier attempt may have made a call that can't be repeated any more.
_MAY_BE_SECOND = f"(attempt > 0 AND NOT {repeatable(_EFFECT)})"

_CLAIM = sa.text(f"""
WITH gate AS ({gate(f"SELECT * FROM runs WHERE id = :id AND {_CLAIMABLE}", gives_back=True)}
), claimed AS (
    UPDATE runs SET
        state = 'in_progress', version = version + 1, fencing_token = {NEXT_TOKEN},
        attempt = attempt + 1, worker_lease_id = :worker_lease_id, started_at = onceonly_now(),
        worker_id = CAST(:worker_id AS text), worker_pid = CAST(:worker_pid AS integer),
        lease_until_at = onceonly_now() + make_interval(secs => CAST(:lease_s AS double precision)),
        deadline_at = onceonly_now() + make_interval(secs => least(lease_ttl_s, CAST(:limit_s AS integer))),
        time_limit_s = CAST(:limit_s AS integer), publish_at = NULL, publications = 0, effect = {_EFFECT}
    WHERE id = :id AND {_CLAIMABLE} AND NOT EXISTS (SELECT FROM gate WHERE code <> 'ok') AND NOT {
    _MAY_BE_SECOND
}
    RETURNING *
), held AS (
    UPDATE runs SET state = 'unknown', version = version + 1, publish_at = NULL, effect = {_EFFECT},
        error_code = 'outcome_unknown',
        error_message = 'an earlier attempt may have made the call, and its tool can''t be called twice any more',
        {confirm_later(_EFFECT)}
    WHERE id = :id AND {_CLAIMABLE} AND NOT EXISTS (SELECT FROM gate WHERE code <> 'ok') AND {_MAY_BE_SECOND}
    RETURNING *
), holding AS ({event_row("'outcome_unknown'", "'unknown'", source="held", message="error_message")}
), {recording("holding")}, starting AS ({
    event_row(
        "'run_started'",
        "'started'",
        source="claimed",
        duration=elapsed_ms("due_at", "started_at"),
    )
}), {recording("starting")}, refused AS (
    UPDATE runs SET state = 'failed', error_code = 'policy_blocked',
        error_message = (SELECT code FROM gate), repeatable = {NEVER_SENT}, {FINISH}
    WHERE id = :id AND {_CLAIMABLE} AND EXISTS (SELECT FROM gate WHERE code <> 'ok')
    RETURNING *
), decided AS ({blocked_decision("refused, gate")}
), ended AS (
    SELECT * FROM refused UNION ALL SELECT * FROM held
), {finished("refused", given_back="attempt = 0", told="ended")}
SELECT {CLAIM_COLUMNS} FROM claimed
""")


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that runs what it has claimed."""

    worker_id: str | None = None
    """A random name that all processes of one worker share."""
    pid: int | None = None


NOBODY = Holder()


def claim(
    run: int,
    job: str,
    worker_lease_id: str,
    lease_s: float,
    time_limit_s: int | None,
    retention_s: int,
    effect: str | None = None,
    holder: Holder = NOBODY,
) -> Statement[Claim | None]:
    """Take a due run of this job. None when it is not due, not queued, or taken: a stale or repeated message.

    A run whose agent may not do this any more ends here, as failed and for retention_s seconds. A tool call that
    was begun before, and whose tool has since become one that can't be called twice, is held as unknown.
    effect: of the function that this worker would call. holder: who it is that runs it.
    """
    return Statement(
        "claims.claim",
        _CLAIM,
        one_or_none(to_claim),
        {
            "id": run,
            "job": job,
            "worker_lease_id": worker_lease_id,
            "lease_s": lease_s,
            "limit_s": time_limit_s,
            "retention_s": retention_s,
            "effect": effect,
            "worker_id": holder.worker_id,
            "worker_pid": holder.pid,
        },
    )


_CLAIMED = sa.text(f"""
SELECT {CLAIM_COLUMNS} FROM runs
WHERE id = :id AND worker_lease_id = :worker_lease_id AND owner = 'server' AND state = 'in_progress'
    AND lease_until_at > onceonly_now()
""")


def claimed(run: int, worker_lease_id: str) -> Statement[Claim | None]:
    """The current claim under this lease id, made by a `claim` whose answer was lost; None when there is none."""
    return Statement(
        "claims.claimed", _CLAIMED, one_or_none(to_claim), {"id": run, "worker_lease_id": worker_lease_id}
    )


_CURRENT = """id = :id AND fencing_token = :fencing_token AND worker_lease_id = :worker_lease_id
    AND owner = 'server' AND state = 'in_progress' AND lease_until_at > onceonly_now()"""


def _of(claim: Claim) -> dict[str, Any]:
    return {"id": claim.id, "fencing_token": claim.fencing_token, "worker_lease_id": claim.lease_id}


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat's answer."""

    overdue: bool
    """The run is past its time limit."""
    time_left_s: float


KEEP_CLAIM = "lease_until_at = onceonly_now() + make_interval(secs => CAST(:lease_s AS double precision))"

_LEFT = "extract(epoch FROM deadline_at - onceonly_now())::double precision AS time_left_s"

_HEARTBEAT = sa.text(f"UPDATE runs SET {KEEP_CLAIM} WHERE {_CURRENT} RETURNING {_LEFT}")

_GOVERNED_HEARTBEAT = sa.text(f"""
WITH gate AS ({gate(f"SELECT * FROM runs WHERE {_CURRENT}")}
), kept AS (
    UPDATE runs SET {KEEP_CLAIM} WHERE {_CURRENT} AND NOT EXISTS (SELECT FROM gate WHERE code <> 'ok')
    RETURNING {_LEFT}
), before AS (
    SELECT id, state FROM runs WHERE {_CURRENT} AND EXISTS (SELECT FROM gate WHERE code <> 'ok') FOR UPDATE
), {stopping("before", "(SELECT code FROM gate)", "'the agent''s permission was withdrawn during the call'")}
, decided AS ({blocked_decision("stopped, gate")})
SELECT time_left_s FROM kept
""")


def heartbeat(claim: Claim, lease_s: float, retention_s: int) -> Statement[Beat | None]:
    """Keep the claim for another lease_s seconds. None when it is lost, or the run was cancelled.

    A run whose agent may not do this any more ends here, as the kill switch would end it. Its limits are not
    judged again: what they allowed is reserved.
    """
    governed = claim.agent_id is not None
    return Statement(
        "claims.heartbeat_governed" if governed else "claims.heartbeat",
        _GOVERNED_HEARTBEAT if governed else _HEARTBEAT,
        one_or_none(lambda row: Beat(row["time_left_s"] <= 0, row["time_left_s"])),
        {**_of(claim), "lease_s": lease_s} | ({"retention_s": retention_s} if governed else {}),
    )


_HOLD_CLAIM = sa.text(f"SELECT FROM runs WHERE {_CURRENT} FOR UPDATE")


def hold_claim(claim: Claim) -> Statement[bool]:
    """Whether the claim is current; then nobody takes, stops or ends the run until the transaction ends."""
    return Statement("claims.hold_claim", _HOLD_CLAIM, lambda r: r.first() is not None, _of(claim))


_CURRENT_GRANT = sa.text("""
SELECT EXISTS (
    SELECT FROM runs WHERE tenant_id = :tenant_id AND key = :key AND fencing_token = :fencing_token
        AND owner = 'server' AND state = 'in_progress' AND lease_until_at > onceonly_now()
)
""")


def is_current(tenant_id: str, key: str, fencing_token: int) -> Statement[bool]:
    """Whether the worker with this token still holds the run under a key, and the run was not stopped."""
    return Statement(
        "claims.is_current",
        _CURRENT_GRANT,
        lambda r: bool(r.scalar_one()),
        {"tenant_id": tenant_id, "key": key, "fencing_token": fencing_token},
    )


_STANDING = sa.text(f"""
SELECT CASE WHEN fencing_token <> :fencing_token OR worker_lease_id IS DISTINCT FROM :worker_lease_id THEN 'lost'
            WHEN {_CURRENT} AND deadline_at <= onceonly_now() THEN 'overdue'
            WHEN {_CURRENT} THEN 'current'
            WHEN state = 'in_progress' THEN 'lost'
            ELSE state END
FROM runs WHERE id = :id
""")


def standing(claim: Claim) -> Statement[str]:
    """How the run stands as far as this claim goes: `current`, `overdue`, `lost`, or the state it was moved to.

    `queued` here means that nobody has claimed it since.
    """
    return Statement(
        "claims.standing", _STANDING, lambda r: str(r.scalar_one_or_none() or "lost"), _of(claim)
    )


_MOVED = {
    "progress": f"UPDATE runs SET progress = CAST(:data AS json) WHERE {_CURRENT} RETURNING *",
    "log": f"SELECT * FROM runs WHERE {_CURRENT}",
}

_NOTE = {
    type_: sa.text(f"""
WITH moved AS ({moved}), noted AS (
    SELECT tenant_id, run_id, onceonly_now() AS at, '{type_}' AS type, 'in_progress' AS status,
           CAST(:step AS text) AS step, coalesce(tool, job) AS tool, agent_id, CAST(:message AS text) AS message,
           CAST(NULL AS bigint) AS duration_ms, CAST(:data AS json) AS data
    FROM moved
), {recording("noted")}
SELECT id FROM moved
""")
    for type_, moved in _MOVED.items()
}


def note(
    claim: Claim,
    type_: Literal["progress", "log"],
    data: dict[str, Any],
    *,
    message: str | None = None,
    step: str | None = None,
) -> Statement[bool]:
    """Write a handler's progress or log line to the timeline. False when the claim is lost."""
    return Statement(
        "claims.note",
        _NOTE[type_],
        lambda r: r.first() is not None,
        {**_of(claim), "data": compact_json(data).decode(), "message": message, "step": step},
    )


# Of a claim whose end is booked, and no other: it costs every statement something.
_FIRST = (
    agents_first("SELECT CAST(:tenant_id AS text) AS tenant_id, CAST(:agent_id AS text) AS agent_id") + ","
)
_HELD = f"AND {AGENTS_HELD}"


def _governed(claim: Claim) -> dict[str, Any]:
    return {"tenant_id": claim.tenant_id, "agent_id": claim.agent_id}


def _completing(first: str = "", held: str = "") -> sa.TextClause:
    return sa.text(f"""
WITH {first} done AS (
    UPDATE runs SET state = 'completed', result = CAST(:result AS json), result_hash = :result_hash,
        error_code = NULL, error_message = NULL, {FINISH}
    WHERE {_CURRENT} AND deadline_at > onceonly_now() {held}
    RETURNING *
), {finished("done", actual="CAST(:actual_micro_usd AS bigint)", told=None)}
SELECT id FROM done
""")


_COMPLETE = _completing()
_COMPLETE_BOOKED = _completing(_FIRST, _HELD)


def complete(
    claim: Claim,
    result: dict[str, Any],
    result_hash: str,
    retention_s: int,
    actual_micro_usd: int | None = None,
) -> Statement[bool]:
    """Store the result and settle its cost; None keeps the reservation.

    False when the claim is no longer current or the time limit has passed.
    """
    booked = claim.agent_id is not None and actual_micro_usd is not None
    return Statement(
        "claims.complete",
        _COMPLETE_BOOKED if booked else _COMPLETE,
        lambda r: r.first() is not None,
        {
            **_of(claim),
            **(_governed(claim) if booked else {}),
            "result": compact_json(result).decode(),
            "result_hash": result_hash,
            "retention_s": retention_s,
            "actual_micro_usd": actual_micro_usd,
        },
    )


def _failing(first: str = "", held: str = "", given_back: str = "false") -> sa.TextClause:
    return sa.text(f"""
WITH {first} done AS (
    UPDATE runs SET state = 'failed', error_code = :error_code, error_message = CAST(:message AS text),
        dead_lettered = :dead_lettered, result = CAST(:result AS json), repeatable = :repeatable,
        failures = failures + 1,
        errors = {with_error("CAST(:kind AS text)", "CAST(:error_code AS text)", "CAST(:message AS text)")}, {FINISH}
    WHERE {_CURRENT} {held}
    RETURNING *
), {finished("done", given_back=given_back)}
SELECT id FROM done
""")


_FAIL = _failing()
_FAIL_NEVER_MADE = _failing(_FIRST, _HELD, "attempt = 1")


Kind = Literal["error", "timeout", "handed_back"]
"""How a start ended that has no result: its handler failed, ran out of time, or was stopped with its worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a run failed for good."""

    error_code: str
    message: str | None = None
    kind: Kind = "error"
    dead_lettered: bool = False
    result: dict[str, Any] | None = None
    """What there is to show of it all the same."""
    repeatable: bool = False
    """The key is free at once: a repeat is a call like the first."""
    never_made: bool = False
    """Provably nothing was sent: what was reserved is given back."""


def fail(claim: Claim, failure: Failure, retention_s: int) -> Statement[bool]:
    """End the run as failed for good. False when the claim is no longer current."""
    booked = claim.agent_id is not None and failure.never_made
    return Statement(
        "claims.fail",
        _FAIL_NEVER_MADE if booked else _FAIL,
        lambda r: r.first() is not None,
        {
            **_of(claim),
            **(_governed(claim) if booked else {}),
            "error_code": failure.error_code,
            "message": failure.message,
            "kind": failure.kind,
            "dead_lettered": failure.dead_lettered,
            "result": None if failure.result is None else compact_json(failure.result).decode(),
            "repeatable": failure.repeatable,
            "retention_s": retention_s,
        },
    )


_HOLD = sa.text(f"""
WITH held AS (
    UPDATE runs SET state = 'unknown', version = version + 1, lease_until_at = NULL, publish_at = NULL,
        error_code = 'outcome_unknown', error_message = CAST(:message AS text), result = CAST(:result AS json),
        errors = {with_error("CAST(:kind AS text)", "'outcome_unknown'", "CAST(:message AS text)")}, {CONFIRM_LATER}
    WHERE {_CURRENT}
    RETURNING *
), holding AS ({held_unknown("held")}), {recording("holding")}, {failures("held")}
SELECT id FROM held
""")


def hold_unknown(
    claim: Claim, message: str, result: dict[str, Any] | None, kind: Kind = "error"
) -> Statement[bool]:
    """Keep a call that may have happened and can't be repeated, until that is settled. Its reservation stays."""
    return Statement(
        "claims.hold_unknown",
        _HOLD,
        lambda r: r.first() is not None,
        {
            **_of(claim),
            "message": message,
            "kind": kind,
            "result": None if result is None else compact_json(result).decode(),
        },
    )


_AGAIN = "state = 'queued', version = version + 1, lease_until_at = NULL, deadline_at = NULL"

_RETRY = sa.text(f"""
WITH requeued AS (
    UPDATE runs SET {_AGAIN}, error_code = :error_code, error_message = CAST(:message AS text),
        due_at = onceonly_now() + make_interval(secs => CAST(:delay_s AS double precision)),
        publish_at = onceonly_now() + make_interval(secs => CAST(:delay_s AS double precision)),
        failures = failures + 1,
        errors = {with_error("'error'", "CAST(:error_code AS text)", "CAST(:message AS text)")}
    WHERE {_CURRENT} AND {REPEATABLE}
    RETURNING *
), retried AS ({retried("error_message")}), {recording("retried")}
SELECT id FROM requeued
""")


def retry(claim: Claim, delay_s: float, error_code: str, message: str) -> Statement[bool]:
    """Put the run back into the queue after a failure. False when the claim is no longer current."""
    return Statement(
        "claims.retry",
        _RETRY,
        lambda r: r.first() is not None,
        {**_of(claim), "delay_s": delay_s, "error_code": error_code, "message": message},
    )


_HAND_BACK = sa.text(f"""
WITH requeued AS (
    UPDATE runs SET {_AGAIN}, error_code = 'handed_back', error_message = CAST(:message AS text),
        due_at = onceonly_now(), publish_at = onceonly_now(),
        errors = {with_error("'handed_back'", "'handed_back'", "CAST(:message AS text)")}
    WHERE {_CURRENT} AND {REPEATABLE}
    RETURNING *
), retried AS ({retried("error_message")}), {recording("retried")}
SELECT id FROM requeued
""")


def hand_back(claim: Claim, message: str) -> Statement[bool]:
    """Put the run back into the queue, due at once: its worker stops. Neither a failure nor a crash.

    False when the claim is no longer current.
    """
    return Statement(
        "claims.hand_back", _HAND_BACK, lambda r: r.first() is not None, {**_of(claim), "message": message}
    )


_RELEASE = sa.text("""
UPDATE runs SET lease_until_at = onceonly_now()
WHERE id = :id AND fencing_token = :fencing_token AND worker_lease_id = :worker_lease_id AND state = 'cancelled'
""")


def release(claim: Claim) -> Statement[int]:
    """Let go of a cancelled run's key: its worker has stopped."""
    return Statement("claims.release", _RELEASE, count, _of(claim))


_REFUSED = sa.text(f"""
WITH refused AS (
    SELECT tenant_id, run_id, onceonly_now() AS at, 'stale_write_refused' AS type, 'refused' AS status,
           CAST(NULL AS text) AS step, coalesce(tool, job) AS tool, agent_id, CAST(:message AS text) AS message,
           CAST(NULL AS bigint) AS duration_ms,
           json_build_object('key', key, 'fencing_token', CAST(:fencing_token AS bigint),
                             'current_token', fencing_token) AS data
    FROM runs WHERE id = :id
), {recording("refused")}
SELECT 1
""")


def record_refusal(claim: Claim, message: str) -> Statement[None]:
    """Leave a trace of a worker that tried to write without a current claim."""
    return Statement(
        "claims.record_refusal",
        _REFUSED,
        lambda _: None,
        {"id": claim.id, "fencing_token": claim.fencing_token, "message": message},
    )
