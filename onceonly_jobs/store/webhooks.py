"""Where a namespace wants to be told of failures, and the outbox of what it is to be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.domain.plans import Kind
from onceonly_jobs.store.governance import LIMITS, window_end
from onceonly_jobs.store.statement import Statement, count, many, one_or_none

PAUSES_S = (5, 60, 300, 1800, 7200, 18_000, 36_000)
"""How long to wait after each failed delivery; after one more, the notification is dead. About 15 hours in all."""

KEPT_DAYS = 32
"""How long a notification is kept: longer than any window for which another one of its kind is left out."""

# What has to be so for a row of `s` to be told of. Namespaces without a webhook have no row to join.
_TOLD = """JOIN webhooks w ON w.tenant_id = s.tenant_id
        JOIN tenants n ON n.id = s.tenant_id AND n.email_notifications_enabled"""


def failures(source: str) -> str:
    """A CTE that tells of the runs of `source` that failed or are held, as the namespaces' switches say."""
    return f"""notified AS (
        INSERT INTO notifications (tenant_id, type, data)
        SELECT s.tenant_id, CASE WHEN s.state = 'unknown' THEN 'tool.outcome_unknown'
                                 WHEN s.effect IS NULL THEN 'run.failed' ELSE 'tool.error' END, json_build_object(
            'key', s.key, 'run_id', s.run_id, 'job', s.job, 'tool', CASE WHEN s.effect IS NOT NULL THEN s.tool END,
            'agent_id', s.agent_id, 'attempt', s.attempt, 'error_code', s.error_code,
            'message', left(s.error_message, 2000), 'dead_lettered', s.dead_lettered, 'decision_id', s.decision_id)
        FROM {source} s {_TOLD}
            AND CASE WHEN s.effect IS NULL THEN n.run_failure_notifications_enabled
                     ELSE n.tool_error_notifications_enabled END
        WHERE s.state IN ('failed', 'unknown')
    )"""


def refused_ticks(source: str) -> str:
    """A CTE that tells, at most once an hour per schedule, of the rows of schedule_ticks `source` that were refused.

    Not of those that somebody asked for, nor of what the kill switch stops: whoever does that sees it.
    """
    return f"""notified AS (
        INSERT INTO notifications (tenant_id, type, data, once)
        SELECT DISTINCT ON (s.tenant_id, s.name) s.tenant_id, 'run.failed', json_build_object(
                   'key', s.key, 'run_id', coalesce(r.run_id, s.key), 'job', coalesce(r.job, c.task), 'tool', NULL,
                   'agent_id', c.agent_id, 'attempt', 0, 'error_code', coalesce(r.error_code, 'tick_refused'),
                   'message', left(s.detail, 2000), 'dead_lettered', false, 'decision_id', r.decision_id),
               concat_ws(':', 'tick', floor(extract(epoch FROM onceonly_now()) / 3600), s.name)
        FROM {source} s {_TOLD} AND n.run_failure_notifications_enabled
        JOIN schedules c ON c.tenant_id = s.tenant_id AND c.name = s.name
        LEFT JOIN runs r ON r.tenant_id = s.tenant_id AND r.key = s.key AND r.error_code = 'policy_blocked'
        WHERE s.state = 'refused' AND s.source = 'scheduler' AND s.detail IS DISTINCT FROM 'agent_disabled'
        ORDER BY s.tenant_id, s.name, s.tick_at
        ON CONFLICT (tenant_id, once) DO NOTHING
    )"""


def limits(source: str, tool: str, condition: str = "true") -> str:
    """A CTE that tells, once per agent, limit and window, of a limit that refused a row of `source`.

    The rows have tenant_id, agent_id, policy and code. tool and condition are SQL.
    """
    ends = window_end("s.code")
    return f"""notified AS (
        INSERT INTO notifications (tenant_id, type, data, once)
        SELECT s.tenant_id, 'limit.reached', json_build_object(
                   'agent_id', s.agent_id, 'code', s.code, 'tool', {tool}, 'resets_at', {ends}, 'limit',
                   CASE s.code WHEN 'max_calls_per_tool_exceeded' THEN s.policy->'max_calls_per_tool'->{tool}
                               ELSE s.policy->replace(s.code, '_exceeded', '') END),
               concat_ws(':', s.code, CAST(extract(epoch FROM {ends}) AS bigint),
                         CASE s.code WHEN 'max_calls_per_tool_exceeded' THEN {tool} END, s.agent_id)
        FROM {source} s {_TOLD}
        WHERE s.code IN {LIMITS} AND {condition}
        ON CONFLICT (tenant_id, once) DO NOTHING
    )"""


_QUOTA = sa.text(f"""
INSERT INTO notifications (tenant_id, type, data, once)
SELECT s.tenant_id, 'quota.reached', json_build_object(
           'kind', CAST(:kind AS text), 'plan', n.plan, 'limit', CAST(:quota AS bigint), 'month', s.month),
       concat_ws(':', 'quota', CAST(:kind AS text), s.month)
FROM (SELECT CAST(:tenant_id AS text) AS tenant_id,
             to_char(onceonly_now() AT TIME ZONE 'UTC', 'YYYY-MM') AS month) s {_TOLD}
ON CONFLICT (tenant_id, once) DO NOTHING
""")


def quota_reached(tenant_id: str, kind: Kind, quota: int) -> Statement[int]:
    """Tell, once a month, that the plan's monthly quota of a kind is used up."""
    params = {"tenant_id": tenant_id, "kind": kind.value, "quota": quota}
    return Statement("webhooks.quota_reached", _QUOTA, count, params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where a namespace's notifications go."""

    tenant_id: str
    url: str
    secret_id: str
    secret_mask: str
    secret_sealed: str = field(repr=False)
    created_at: datetime
    updated_at: datetime
    pending: int
    dead: int


_COLUMNS = "tenant_id, url, secret_id, secret_mask, secret_sealed, created_at, updated_at"

_COUNTED = f"""{_COLUMNS},
    (SELECT count(*) FROM notifications n WHERE n.tenant_id = w.tenant_id AND n.state = 'pending') AS pending,
    (SELECT count(*) FROM notifications n WHERE n.tenant_id = w.tenant_id AND n.state = 'dead') AS dead"""


def _webhook(row: sa.RowMapping) -> Webhook:
    return Webhook(**row)


_FIND = sa.text(f"SELECT {_COUNTED} FROM webhooks w WHERE tenant_id = :tenant_id")


def find(tenant_id: str) -> Statement[Webhook | None]:
    """A namespace's webhook; None where it has none."""
    return Statement("webhooks.find", _FIND, one_or_none(_webhook), {"tenant_id": tenant_id})


_HOLD = sa.text(f"SELECT {_COUNTED} FROM webhooks w WHERE tenant_id = :tenant_id FOR UPDATE OF w")


def hold(tenant_id: str) -> Statement[Webhook | None]:
    """`find`, and let nobody change it until the transaction ends."""
    return Statement("webhooks.hold", _HOLD, one_or_none(_webhook), {"tenant_id": tenant_id})


_PUT = sa.text("""
WITH put AS (
    INSERT INTO webhooks AS w (tenant_id, url, secret_id, secret_mask, secret_sealed)
    VALUES (:tenant_id, :url, :secret_id, :secret_mask, :secret_sealed)
    ON CONFLICT (tenant_id) DO UPDATE SET
        url = excluded.url, secret_id = excluded.secret_id, secret_mask = excluded.secret_mask,
        secret_sealed = excluded.secret_sealed, updated_at = onceonly_now()
    RETURNING *
)
INSERT INTO feed_events (tenant_id, type, status, data)
SELECT tenant_id, 'webhook_set', 'ok',
       json_build_object('actor', CAST(:actor AS text), 'url', url, 'secret_id', secret_id)
FROM put
""")


def put(
    tenant_id: str, *, url: str, secret_id: str, secret_mask: str, secret_sealed: str, actor: str
) -> Statement[int]:
    """Set the namespace's webhook."""
    params = {
        "tenant_id": tenant_id,
        "url": url,
        "secret_id": secret_id,
        "secret_mask": secret_mask,
        "secret_sealed": secret_sealed,
        "actor": actor,
    }
    return Statement("webhooks.put", _PUT, count, params)


_DELETE = sa.text("""
WITH deleted AS (
    DELETE FROM webhooks WHERE tenant_id = :tenant_id RETURNING *
), given_up AS (
    UPDATE notifications n SET state = 'dead', error = 'the webhook was removed', due_at = NULL
    FROM deleted d WHERE n.tenant_id = d.tenant_id AND n.state = 'pending'
), fed AS (
    INSERT INTO feed_events (tenant_id, type, status, data)
    SELECT tenant_id, 'webhook_deleted', 'ok', json_build_object('actor', CAST(:actor AS text), 'url', url)
    FROM deleted
)
SELECT url FROM deleted
""")


def delete(tenant_id: str, actor: str) -> Statement[str | None]:
    """Remove the namespace's webhook; what has not been delivered is dead. Gives its URL, None if there was none."""
    return Statement(
        "webhooks.delete", _DELETE, lambda r: r.scalar_one_or_none(), {"tenant_id": tenant_id, "actor": actor}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What a namespace is to be told, and how far that is."""

    id: int
    message_id: str
    type: str
    at: datetime
    data: dict[str, Any]
    state: str
    attempts: int
    due_at: datetime | None
    delivered_at: datetime | None
    status: int | None
    error: str | None


_SHOWN = "id, message_id, type, at, data, state, attempts, due_at, delivered_at, status, error"

_LIST = sa.text(f"""
SELECT {_SHOWN} FROM notifications
WHERE tenant_id = :tenant_id AND (CAST(:state AS text) IS NULL OR state = :state)
ORDER BY id DESC LIMIT :limit OFFSET :offset
""")


def notifications(
    tenant_id: str, state: str | None, limit: int, offset: int
) -> Statement[list[Notification]]:
    """A namespace's notifications, latest first."""
    return Statement(
        "webhooks.notifications",
        _LIST,
        many(lambda row: Notification(**row)),
        {"tenant_id": tenant_id, "state": state, "limit": limit, "offset": offset},
    )


_TRY_OUT = sa.text(f"""
INSERT INTO notifications (tenant_id, type, data)
SELECT tenant_id, 'webhook.test', json_build_object('actor', CAST(:actor AS text))
FROM webhooks WHERE tenant_id = :tenant_id
RETURNING {_SHOWN}
""")


def try_out(tenant_id: str, actor: str) -> Statement[Notification | None]:
    """Put a notification into the outbox that only tries the webhook; None where there is none."""
    return Statement(
        "webhooks.try_out",
        _TRY_OUT,
        one_or_none(lambda row: Notification(**row)),
        {"tenant_id": tenant_id, "actor": actor},
    )


_RETRY = sa.text("""
UPDATE notifications n SET state = 'pending', attempts = 0, due_at = onceonly_now()
FROM webhooks w WHERE w.tenant_id = n.tenant_id AND n.tenant_id = :tenant_id AND n.state = 'dead'
    AND (CAST(:message_id AS text) IS NULL OR n.message_id = :message_id)
""")


def retry(tenant_id: str, message_id: str | None) -> Statement[int]:
    """Try dead notifications again, under their old ids; None: all of them. Gives how many."""
    return Statement("webhooks.retry", _RETRY, count, {"tenant_id": tenant_id, "message_id": message_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A notification that this process has taken to deliver, and where to."""

    id: int
    message_id: str
    tenant_id: str
    type: str
    at: datetime
    data: dict[str, Any]
    attempt: int
    url: str
    secret_id: str
    secret_sealed: str = field(repr=False)


# A few of each namespace: one whose server is slow or gone must not hold up those of the others. What is taken is
# put off, so that it comes again should its taker die.
_TAKE = sa.text("""
WITH due AS (
    SELECT d.id FROM webhooks w CROSS JOIN LATERAL (
        SELECT n.id FROM notifications n
        WHERE n.tenant_id = w.tenant_id AND n.state = 'pending' AND n.due_at <= onceonly_now()
        ORDER BY n.due_at LIMIT :each FOR UPDATE SKIP LOCKED
    ) d LIMIT :batch
)
UPDATE notifications n SET attempts = attempts + 1,
    due_at = onceonly_now() + make_interval(secs => CAST(:lease_s AS double precision))
FROM due, webhooks w WHERE n.id = due.id AND w.tenant_id = n.tenant_id
RETURNING n.id, n.message_id, n.tenant_id, n.type, n.at, n.data, n.attempts AS attempt, w.url, w.secret_id,
    w.secret_sealed
""")


def take(batch: int, each: int, lease_s: float) -> Statement[list[Delivery]]:
    """Due notifications, at most `each` of a namespace, left alone by all others for lease_s seconds."""
    return Statement(
        "webhooks.take",
        _TAKE,
        many(lambda row: Delivery(**row)),
        {"batch": batch, "each": each, "lease_s": lease_s},
    )


_DELIVERED = sa.text("""
UPDATE notifications SET state = 'delivered', delivered_at = onceonly_now(), due_at = NULL, status = :status,
    error = NULL
WHERE id = :id AND state = 'pending'
""")


def delivered(delivery: Delivery, status: int) -> Statement[int]:
    """The receiver has taken it."""
    return Statement("webhooks.delivered", _DELIVERED, count, {"id": delivery.id, "status": status})


_FAILED = sa.text("""
UPDATE notifications SET status = :status, error = :error,
    state = CASE WHEN attempts > cardinality(CAST(:pauses AS integer[])) THEN 'dead' ELSE 'pending' END,
    due_at = onceonly_now() + make_interval(secs => (CAST(:pauses AS integer[]))[attempts])
WHERE id = :id AND state = 'pending' AND attempts = :attempt
""")


def failed(delivery: Delivery, status: int | None, error: str) -> Statement[int]:
    """It was not taken: to be tried again after a pause, or dead after the last attempt."""
    return Statement(
        "webhooks.failed",
        _FAILED,
        count,
        {
            "id": delivery.id,
            "attempt": delivery.attempt,
            "status": status,
            "error": error,
            "pauses": list(PAUSES_S),
        },
    )


_FORGET = sa.text(f"""
DELETE FROM notifications WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM notifications
    WHERE state <> 'pending' AND at < onceonly_now() - interval '{KEPT_DAYS} days'
    ORDER BY at LIMIT :batch FOR UPDATE SKIP LOCKED
))
""")


def forget(batch: int) -> Statement[int]:
    """Remove notifications that are older than KEPT_DAYS and not pending."""
    return Statement("webhooks.forget", _FORGET, count, {"batch": batch})
