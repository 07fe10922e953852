"""A worker's side of a run: claim it, keep it, and end it with the current fencing token or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.domain.runs import Claim
from onceonly_jobs.store.events import ATTEMPT_MS, elapsed_ms, event_row, recording
from onceonly_jobs.store.governance import REASON, permission, risk
from onceonly_jobs.store.rows import (
    CLAIM_COLUMNS,
    CONFIRM_LATER,
    FINISH,
    NEVER_SENT,
    REPEATABLE,
    finished,
    held_unknown,
    to_claim,
)
from onceonly_jobs.store.statement import Statement, count, one_or_none
from onceonly_jobs.store.webhooks import failures

_CLAIMABLE = "owner = 'server' AND state = 'queued' AND job = :job AND due_at <= onceonly_now()"

# The kill switch and the policy are read again here, from the agent's row and under a lock that the switch waits for:
# no claim commits after the switch has answered.
_CLAIM = sa.text(f"""
WITH gate AS (
    SELECT a.policy_version, CASE {permission("r.tool")} ELSE 'ok' END AS code
    FROM (SELECT * FROM runs WHERE id = :id AND {_CLAIMABLE}) r
    JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
    FOR SHARE OF a
), claimed AS (
    UPDATE runs SET
        state = 'in_progress', version = version + 1, fencing_token = fencing_token + 1,
        attempt = attempt + 1, worker_lease_id = :worker_lease_id, started_at = onceonly_now(),
        lease_until_at = onceonly_now() + make_interval(secs => CAST(:lease_s AS double precision)),
        deadline_at = onceonly_now() + make_interval(secs => least(lease_ttl_s, CAST(:limit_s AS integer))),
        publish_at = NULL, publications = 0
    WHERE id = :id AND {_CLAIMABLE} AND NOT EXISTS (SELECT FROM gate WHERE code <> 'ok')
    RETURNING *
), starting AS ({
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
), decided AS (
    INSERT INTO audit_decisions (tenant_id, agent_id, tool, run_key, allowed, decision, policy_reason, policy_code,
                                 risk_level, policy_version)
    SELECT tenant_id, agent_id, coalesce(tool, job), key, false, 'blocked', {REASON}, code, {
    risk("coalesce(tool, job)")
}, gate.policy_version
    FROM refused, gate
), {finished("refused", given_back="attempt = 0")}
SELECT {CLAIM_COLUMNS} FROM claimed
""")


def claim(
    run: int,
    job: str,
    worker_lease_id: str,
    lease_s: float,
    time_limit_s: int | None,
    retention_s: int,
) -> Statement[Claim | None]:
    """Take a due run of this job. None when it is not due, not queued, or taken: a stale or repeated message.

    A run whose agent may not do this any more ends here, as failed and for retention_s seconds.
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


_HEARTBEAT = sa.text(f"""
UPDATE runs SET lease_until_at = onceonly_now() + make_interval(secs => CAST(:lease_s AS double precision))
WHERE {_CURRENT}
RETURNING extract(epoch FROM deadline_at - onceonly_now())::double precision AS time_left_s
""")


def heartbeat(claim: Claim, lease_s: float) -> Statement[Beat | None]:
    """Keep the claim for another lease_s seconds. None when it is lost, or the run was cancelled."""
    return Statement(
        "claims.heartbeat",
        _HEARTBEAT,
        one_or_none(lambda row: Beat(row["time_left_s"] <= 0, row["time_left_s"])),
        {**_of(claim), "lease_s": lease_s},
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


_STANDING = sa.text("""
SELECT CASE WHEN fencing_token = :fencing_token AND worker_lease_id = :worker_lease_id THEN state ELSE 'lost' END
FROM runs WHERE id = :id
""")


def standing(claim: Claim) -> Statement[str]:
    """The run's state as far as this claim goes: a state of its own making, `cancelled`, or `lost`.

    `in_progress` and `queued` here mean an expired claim that nobody has taken yet.
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


_COMPLETE = sa.text(f"""
WITH done AS (
    UPDATE runs SET state = 'completed', result = CAST(:result AS json), result_hash = :result_hash,
        error_code = NULL, error_message = NULL, {FINISH}
    WHERE {_CURRENT} AND deadline_at > onceonly_now()
    RETURNING *
), {finished("done", actual="CAST(:actual_micro_usd AS bigint)", told=None)}
SELECT id FROM done
""")


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
    return Statement(
        "claims.complete",
        _COMPLETE,
        lambda r: r.first() is not None,
        {
            **_of(claim),
            "result": compact_json(result).decode(),
            "result_hash": result_hash,
            "retention_s": retention_s,
            "actual_micro_usd": actual_micro_usd,
        },
    )


_FAIL = sa.text(f"""
WITH done AS (
    UPDATE runs SET state = 'failed', error_code = :error_code, error_message = CAST(:message AS text),
        dead_lettered = :dead_lettered, result = CAST(:result AS json), repeatable = :repeatable, {FINISH}
    WHERE {_CURRENT}
    RETURNING *
), {finished("done", given_back="CAST(:never_made AS boolean) AND attempt = 1")}
SELECT id FROM done
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a run failed for good."""

    error_code: str
    message: str | None = None
    dead_lettered: bool = False
    result: dict[str, Any] | None = None
    """What there is to show of it all the same."""
    repeatable: bool = False
    """The key is free at once: a repeat is a call like the first."""
    never_made: bool = False
    """Provably nothing was sent: what was reserved is given back."""


def fail(claim: Claim, failure: Failure, retention_s: int) -> Statement[bool]:
    """End the run as failed for good. False when the claim is no longer current."""
    return Statement(
        "claims.fail",
        _FAIL,
        lambda r: r.first() is not None,
        {
            **_of(claim),
            "error_code": failure.error_code,
            "message": failure.message,
            "dead_lettered": failure.dead_lettered,
            "result": None if failure.result is None else compact_json(failure.result).decode(),
            "repeatable": failure.repeatable,
            "never_made": failure.never_made,
            "retention_s": retention_s,
        },
    )


_HOLD = sa.text(f"""
WITH held AS (
    UPDATE runs SET state = 'unknown', version = version + 1, lease_until_at = NULL, publish_at = NULL,
        error_code = 'outcome_unknown', error_message = CAST(:message AS text), result = CAST(:result AS json),
        {CONFIRM_LATER}
    WHERE {_CURRENT}
    RETURNING *
), holding AS ({held_unknown("held")}), {recording("holding")}, {failures("held")}
SELECT id FROM held
""")


def hold_unknown(claim: Claim, message: str, result: dict[str, Any] | None) -> Statement[bool]:
    """Keep a call that may have happened and can't be repeated, until that is settled. Its reservation stays."""
    return Statement(
        "claims.hold_unknown",
        _HOLD,
        lambda r: r.first() is not None,
        {
            **_of(claim),
            "message": message,
            "result": None if result is None else compact_json(result).decode(),
        },
    )


def _retried(message: str) -> str:
    return event_row(
        "'run_retried'",
        "'queued'",
        source="requeued",
        message=message,
        duration=ATTEMPT_MS,
        more=f", 'error_code', error_code, 'due_in_ms', CAST({elapsed_ms('onceonly_now()', 'due_at')} AS bigint)",
    )


_RETRY = sa.text(f"""
WITH requeued AS (
    UPDATE runs SET state = 'queued', version = version + 1, lease_until_at = NULL, deadline_at = NULL,
        error_code = :error_code, error_message = CAST(:message AS text),
        due_at = onceonly_now() + make_interval(secs => CAST(:delay_s AS double precision)),
        publish_at = onceonly_now() + make_interval(secs => CAST(:delay_s AS double precision))
    WHERE {_CURRENT} AND {REPEATABLE}
    RETURNING *
), retried AS ({_retried("error_message")}), {recording("retried")}
SELECT id FROM requeued
""")


def retry(claim: Claim, delay_s: float, error_code: str, message: str) -> Statement[bool]:
    """Put the run back into the queue for another attempt. False when the claim is no longer current."""
    return Statement(
        "claims.retry",
        _RETRY,
        lambda r: r.first() is not None,
        {**_of(claim), "delay_s": delay_s, "error_code": error_code, "message": message},
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


# At the time of the last heartbeat's end, whenever somebody came to look.
_LEASE_EXPIRED = event_row(
    "'lease_expired'",
    "'lost'",
    source="taken_back",
    at="lost_at",
    message="'no heartbeat'",
    duration=elapsed_ms("started_at", "lost_at"),
)

_REAP = sa.text(f"""
WITH expired AS (
    SELECT id, lease_until_at AS lost_at FROM runs
    WHERE state = 'in_progress' AND owner = 'server' AND lease_until_at <= onceonly_now()
    ORDER BY lease_until_at LIMIT :batch FOR UPDATE SKIP LOCKED
), requeued AS (
    UPDATE runs r SET state = 'queued', version = version + 1, lease_until_at = NULL, deadline_at = NULL,
        error_code = 'worker_lost', due_at = onceonly_now(), publish_at = onceonly_now()
    FROM expired WHERE r.id = expired.id AND r.attempt < r.max_attempts AND {REPEATABLE}
    RETURNING r.*, lost_at
), lost AS (
    UPDATE runs r SET state = 'failed', error_code = 'worker_lost', dead_lettered = true,
        error_message = 'the worker''s lease expired on the last attempt', repeatable = effect IS NOT NULL, {
    FINISH
}
    FROM expired WHERE r.id = expired.id AND r.attempt >= r.max_attempts AND {REPEATABLE}
    RETURNING r.*, lost_at
), held AS (
    UPDATE runs r SET state = 'unknown', version = version + 1, lease_until_at = NULL, publish_at = NULL,
        error_code = 'outcome_unknown', error_message = 'the worker was lost during the call',
        {CONFIRM_LATER}
    FROM expired WHERE r.id = expired.id AND NOT {REPEATABLE}
    RETURNING r.*, lost_at
), taken_back AS (
    SELECT * FROM requeued UNION ALL SELECT * FROM lost UNION ALL SELECT * FROM held
), {
    finished(
        "lost", also=(_LEASE_EXPIRED, _retried("'worker lost'"), held_unknown("held")), told="taken_back"
    )
}
SELECT tenant_id, key, state FROM requeued UNION ALL SELECT tenant_id, key, state FROM lost
UNION ALL SELECT tenant_id, key, state FROM held
""")


@dataclass(frozen=True, slots=True)
class Reaped:
    tenant_id: str
    key: str
    finished: bool


def reap(batch: int, retention_s: int) -> Statement[list[Reaped]]:
    """Take expired claims back: queued again where attempts are left, otherwise failed as dead letters."""

    def read(result: sa.CursorResult[Any]) -> list[Reaped]:
        return [Reaped(row.tenant_id, row.key, row.state != "queued") for row in result]

    return Statement("claims.reap", _REAP, read, {"batch": batch, "retention_s": retention_s})


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A run that may be published now."""

    id: int
    tenant_id: str
    key: str
    agent_id: str | None
    job: str
    queue: str
    due_at: datetime


# Skipping locked rows lets any number of relays share the work. The doubling keeps a long backlog from
# filling the broker with copies of itself; 9 doublings of the 2 s grace pass the cap of 5 minutes.
_DUE = sa.text("""
WITH due AS (
    SELECT id FROM runs
    WHERE state = 'queued' AND publish_at <= onceonly_now() AND queue <> ALL (CAST(:full AS text[]))
    ORDER BY publish_at LIMIT :batch FOR UPDATE SKIP LOCKED
)
UPDATE runs r SET publications = publications + 1,
    publish_at = onceonly_now() + make_interval(
        secs => least(300, CAST(:grace_s AS double precision) * 2 ^ least(publications, 9)))
FROM due WHERE r.id = due.id
RETURNING r.id, r.tenant_id, r.key, r.agent_id, r.job, r.queue, r.due_at
""")


def take_due(batch: int, grace_s: float, full_queues: list[str]) -> Statement[list[Due]]:
    """Due runs that nobody has claimed, marked to be looked at again later; for publishing after the commit."""

    def read(result: sa.CursorResult[Any]) -> list[Due]:
        return sorted((Due(**row) for row in result.mappings()), key=lambda due: (due.due_at, due.id))

    return Statement("claims.take_due", _DUE, read, {"batch": batch, "grace_s": grace_s, "full": full_queues})


_REPUBLISH = sa.text("""
UPDATE runs SET publish_at = onceonly_now(), publications = 0
WHERE state = 'queued' AND due_at <= onceonly_now()
""")


def republish_all() -> Statement[int]:
    """Make every due run publishable at once: the broker has lost what it held."""
    return Statement("claims.republish_all", _REPUBLISH, count)
