"""How rows of `runs` become values, and the CTEs that every finished run leaves behind."""

from __future__ import annotations

import sqlalchemy as sa

from onceonly_jobs.domain.runs import Claim, Run
from onceonly_jobs.domain.states import Owner, RunState
from onceonly_jobs.store.events import ATTEMPT_MS, elapsed_ms, event_row, recording
from onceonly_jobs.store.governance import charged, reason, settlement
from onceonly_jobs.store.webhooks import failures

RUN_COLUMNS = """id, key, run_id, owner, state, version, fencing_token, lease_id, lease_ttl_s, lease_until_at,
    deadline_at, first_seen_at, done_at, result, result_hash, error_code, error_message, onceonly_now() AS read_at"""

CLAIM_COLUMNS = """id, tenant_id, key, run_id, job, agent_id, worker_lease_id, fencing_token, attempt,
    max_attempts, failures, crashes, max_crashes, metadata, deadline_at, started_at, decision_id, first_seen_at,
    effect, due_at, traceparent"""


def repeatable(effect: str) -> str:
    """SQL for whether a call that may have been made can be made again without harm."""
    return f"coalesce({effect}, 'idempotent') IN ('read', 'idempotent')"


REPEATABLE = repeatable("effect")

# A call that was stopped before it was sent is forgotten: a repeat is a call like the first.
NEVER_SENT = "(effect IS NOT NULL AND attempt = 0)"

# From one sequence for all keys, so that a key's tokens grow on when its row was deleted in between.
NEXT_TOKEN = "greatest(fencing_token + 1, nextval('fencing_tokens'))"  # noqa: S105 (no secret)

# A replay concludes under a decision of its own. Of two, the later holds: a version that does not know of replays
# leaves the earlier one's replay where it was when the key is taken again.
LATEST_DECISION = "greatest(concludes_id, decision_id)"
"""The decision whose outcome the run's latest end is: it names this failure, and no later one of the same run."""

ERRORS_KEPT = 50
LONGEST_ERROR = 1000


def with_error(kind: str, code: str, message: str, *, more: str = "") -> str:
    """SQL for `errors` with what is known of the start that ends now; of the oldest, the 51st is dropped.

    kind, code and message are SQL: `error`, `timeout`, `crash` or `handed_back`, and what says more. more: further
    pairs, as SQL that begins with a comma.
    """
    return f"""(CASE WHEN jsonb_array_length(coalesce(errors, '[]')) >= {ERRORS_KEPT} THEN errors - 0
        ELSE coalesce(errors, '[]') END) || jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'attempt', attempt, 'at', onceonly_now(), 'kind', {kind}, 'code', {code},
        'message', left({message}, {LONGEST_ERROR}), 'worker', worker_id, 'pid', worker_pid,
        'started_at', started_at{more})))"""


FINISHED = "state IN ('completed', 'failed', 'cancelled')"

RETAINED = f"NOT ({FINISHED} AND retain_until_at <= onceonly_now())"

FINISH = """version = version + 1, done_at = onceonly_now(), publish_at = NULL,
    retain_until_at = CASE WHEN retention_s IS NULL
        THEN onceonly_now() + make_interval(secs => CAST(:retention_s AS integer))
        ELSE onceonly_now() + make_interval(secs => retention_s) END"""

CONFIRM_PAUSES_S = (5, 30, 120, 600, 3600, 21_600)
"""How long to wait before each question to a reconcilable tool; after the last one it is a person's turn."""


def confirm_later(effect: str) -> str:
    """SET items of a run held as unknown: a reconcilable tool is asked, though not at once. It may be at work still."""
    return f"""confirmations = 0, confirm_at = CASE {effect} WHEN 'reconcilable'
            THEN onceonly_now() + interval '{CONFIRM_PAUSES_S[0]} seconds' END"""


CONFIRM_LATER = confirm_later("effect")

_RUN_FIELDS = (
    "id key run_id version fencing_token lease_id lease_ttl_s lease_until_at deadline_at first_seen_at "
    "done_at result result_hash error_code error_message read_at"
).split()


def to_run(row: sa.RowMapping) -> Run:
    return Run(
        owner=Owner(row["owner"]), state=RunState(row["state"]), **{name: row[name] for name in _RUN_FIELDS}
    )


def to_claim(row: sa.RowMapping) -> Claim:
    fields = {name: row[name] for name in ("id", "tenant_id", "key", "run_id", "job", "agent_id")}
    return Claim(
        **fields,
        lease_id=row["worker_lease_id"],
        fencing_token=row["fencing_token"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        failures=row["failures"],
        crashes=row["crashes"],
        max_crashes=row["max_crashes"],
        metadata=row["metadata"] or {},
        deadline_at=row["deadline_at"],
        claimed_at=row["started_at"],
        first_seen_at=row["first_seen_at"],
        effect=row["effect"],
        decision_id=row["decision_id"],
        due_at=row["due_at"],
        traceparent=row["traceparent"],
    )


def retried(message: str) -> str:
    return event_row(
        "'run_retried'",
        "'queued'",
        source="requeued",
        message=message,
        duration=ATTEMPT_MS,
        more=f", 'error_code', error_code, 'due_in_ms', CAST({elapsed_ms('onceonly_now()', 'due_at')} AS bigint)",
    )


def held_unknown(source: str) -> str:
    """SELECT of the events that tell of runs which `source` has just put on hold."""
    return event_row(
        "'outcome_unknown'", "'unknown'", source=source, message="error_message", duration=ATTEMPT_MS
    )


def finished(
    source: str,
    *,
    actual: str = "CAST(NULL AS bigint)",
    given_back: str = "false",
    also: tuple[str, ...] = (),
    told: str | None = "",
) -> str:
    """CTEs for runs that `source` has just finished: timeline, feed, the outcome of their decision, its settlement.

    actual and given_back are SQL over the runs, as in `governance.settlement`. also: SELECTs of further events
    that the statement has to tell of. told: the runs whose failure webhooks are told of, another CTE than `source`;
    None: whoever ends these runs knows.
    """
    status = "CASE state WHEN 'completed' THEN 'completed' ELSE 'failed' END"
    blocked = "error_code = 'policy_blocked'"
    result = f"CASE WHEN state = 'completed' THEN 'ok' WHEN {blocked} THEN 'blocked' ELSE 'error' END"
    why = f"CASE WHEN {blocked} THEN {reason('error_message')} ELSE error_message END"
    before = "onceonly_now() - interval '1 microsecond'"
    total = f", 'total_ms', CAST({elapsed_ms('first_seen_at')} AS bigint)"
    further = "".join(f" UNION ALL {event}" for event in also)
    return f"""
    finishing AS (
        {event_row("'tool_result'", result, source=source, message=why, at=before)}
        WHERE effect IS NOT NULL
        UNION ALL {
        event_row(
            "'run_finished'", status, source=source, message="error_code", duration=ATTEMPT_MS, more=total
        )
    }{further}
    ),
    {recording("finishing")}, fed AS (
        INSERT INTO feed_events (tenant_id, type, kind, key, status, agent_id, message)
        SELECT tenant_id, 'run_finished', 'ai', key, state, agent_id, error_code FROM {source}
    ), concluded AS (
        INSERT INTO audit_outcomes
            (decision_id, tenant_id, outcome, error_code, spend_micro_usd, overrun, latency_ms)
        SELECT {LATEST_DECISION}, tenant_id, state, error_code, {charged(actual, given_back)},
               coalesce({actual} > reserved_micro_usd, false), CAST({ATTEMPT_MS} AS bigint)
        FROM {source} WHERE decision_id IS NOT NULL
        ON CONFLICT (decision_id) DO NOTHING
    ), settled AS ({settlement(source, actual, given_back)}
    ){"" if told is None else ", " + failures(told or source)}"""
