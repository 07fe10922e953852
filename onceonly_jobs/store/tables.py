"""The tables, as SQLAlchemy sees them. Migrations make them; a test holds both against each other.

Tenant is the first column of every key, so that a deployment can be sharded by tenant.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TIMESTAMP

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

CLOCK_DDL = """
CREATE OR REPLACE FUNCTION onceonly_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT statement_timestamp()'
"""
"""The only clock for leases, windows and schedules. Tests replace it and so move time for every process."""

Time = TIMESTAMP(timezone=True)


def _required(name: str, kind: sa.types.TypeEngine[Any], default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, server_default=None if default is None else sa.text(default))


def _written_by() -> sa.Column[Any]:
    """The transaction that wrote the row: what has not been sealed yet is found by it."""
    return _required("transaction_id", sa.BigInteger(), "CAST(CAST(pg_current_xact_id() AS text) AS bigint)")


def _identity(always: bool = True) -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(always=always), primary_key=True)


tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _required("plan", sa.Text()),
    _required("created_at", Time, "onceonly_now()"),
    sa.Column("disabled_at", Time),
    _required("email_notifications_enabled", sa.Boolean(), "true"),
    _required("tool_error_notifications_enabled", sa.Boolean(), "true"),
    _required("run_failure_notifications_enabled", sa.Boolean(), "true"),
    sa.CheckConstraint("plan IN ('free', 'starter', 'pro', 'agency')", name="plan"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.ForeignKey("tenants.id"), nullable=False, index=True),
    # The SHA-256 of a key of 190 random bits: nothing to guess, so a slow hash would only cost time.
    sa.Column("key_sha256", sa.LargeBinary, nullable=False, unique=True),
    _required("preview", sa.Text()),
    sa.Column("rate_limit", sa.Text),
    _required("created_at", Time, "onceonly_now()"),
    sa.Column("disabled_at", Time),
)

locks = sa.Table(
    "locks",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    _required("ttl_s", sa.Integer()),
    _required("first_seen_at", Time),
    _required("locked_until_at", Time),
    sa.Column("metadata", JSON),
    sa.Column("fingerprint", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Index("ix_locks_expired", "locked_until_at"),
)

fencing_tokens = sa.Sequence("fencing_tokens", data_type=sa.BigInteger, metadata=metadata)
"""Tokens grow over all keys, so that a key's grow on when its row was deleted in between."""

runs = sa.Table(
    "runs",
    metadata,
    _identity(),
    _required("tenant_id", sa.Text()),
    _required("key", sa.Text()),
    _required("owner", sa.Text()),
    _required("state", sa.Text()),
    _required("version", sa.Integer(), "1"),
    _required("fencing_token", sa.BigInteger(), "0"),
    _required("run_id", sa.Text()),
    sa.Column("agent_id", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("metadata", JSON),
    # The caller's lease. For a server-run job it is the requester's handle.
    _required("lease_id", sa.Text()),
    _required("lease_ttl_s", sa.Integer()),
    sa.Column("lease_until_at", Time),
    # Server-run jobs only, from here to publications.
    sa.Column("worker_lease_id", sa.Text),
    sa.Column("deadline_at", Time),
    # The job's own, as its worker had it at the claim.
    sa.Column("time_limit_s", sa.Integer),
    sa.Column("job", sa.Text),
    sa.Column("queue", sa.Text),
    _required("attempt", sa.Integer(), "0"),
    _required("max_attempts", sa.Integer(), "1"),
    # `attempt` counts starts, these two how those ended: a handler that failed, a worker that died. A run that a
    # stopping worker hands back counts as neither.
    _required("failures", sa.Integer(), "0"),
    _required("crashes", sa.Integer(), "0"),
    _required("max_crashes", sa.Integer(), "3"),
    # What is known of each start that did not end well, oldest first.
    sa.Column("errors", JSONB),
    # Who holds the claim: the random name of a worker, and its process.
    sa.Column("worker_id", sa.Text),
    sa.Column("worker_pid", sa.Integer),
    sa.Column("due_at", Time),
    sa.Column("publish_at", Time),
    _required("publications", sa.Integer(), "0"),
    sa.Column("progress", JSON),
    _required("first_seen_at", Time),
    sa.Column("started_at", Time),
    sa.Column("done_at", Time),
    sa.Column("retain_until_at", Time),
    sa.Column("result", JSON),
    sa.Column("result_hash", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error_hash", sa.Text),
    sa.Column("error_message", sa.Text),
    _required("dead_lettered", sa.Boolean(), "false"),
    # Tool calls only: what a repetition may do, whether a failed one may be repeated at once, and how long the
    # answer serves repetitions.
    sa.Column("effect", sa.Text),
    _required("repeatable", sa.Boolean(), "false"),
    sa.Column("retention_s", sa.Integer),
    # Of an unknown call: when its tool is asked next whether it has happened, and how often it was.
    sa.Column("confirm_at", Time),
    _required("confirmations", sa.Integer(), "0"),
    sa.Column("decision_id", sa.BigInteger),
    # Of a replayed dead letter: the decision to replay it, whose outcome the run's next end is.
    sa.Column("concludes_id", sa.BigInteger),
    # What the decision reserved, and for which windows of its agent: given back or settled there.
    # By this name the policy knows the run: its job's, or for a tool call the tool's.
    sa.Column("tool", sa.Text),
    _required("reserved_micro_usd", sa.BigInteger(), "0"),
    sa.Column("reserved_at", Time),
    # The trace of the call that asked for it, as W3C's header has it: of every attempt, whoever published it.
    sa.Column("traceparent", sa.Text),
    # Which schedule asked for it, if one did.
    sa.Column("schedule", sa.Text),
    sa.UniqueConstraint("tenant_id", "key"),
    sa.CheckConstraint("owner IN ('caller', 'server')", name="owner"),
    sa.CheckConstraint(
        "state IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'unknown')", name="state"
    ),
    # What waits to be settled, and whose tool is to be asked.
    sa.Index(
        "ix_runs_unknown", "tenant_id", "started_at", "id", postgresql_where=sa.text("state = 'unknown'")
    ),
    sa.Index("ix_runs_confirm", "confirm_at", postgresql_where=sa.text("state = 'unknown'")),
    # What went wrong, for whoever looks for it. All other states are either few or most.
    sa.Index(
        "ix_runs_stopped",
        "tenant_id",
        sa.text("id DESC"),
        postgresql_where=sa.text("state IN ('failed', 'cancelled')"),
    ),
    # Dead letters, oldest first; and what the retention time is over for.
    sa.Index("ix_runs_dead", "tenant_id", "done_at", "id", postgresql_where=sa.text("dead_lettered")),
    sa.Index(
        "ix_runs_retention",
        "retain_until_at",
        postgresql_where=sa.text("state IN ('completed', 'failed', 'cancelled')"),
    ),
    # The relay's two questions: what is due, and whose claim has expired.
    sa.Index("ix_runs_due", "publish_at", postgresql_where=sa.text("state = 'queued'")),
    # The kill switch's question.
    sa.Index(
        "ix_runs_agent",
        "tenant_id",
        "agent_id",
        postgresql_where=sa.text("state IN ('queued', 'in_progress') AND owner = 'server'"),
    ),
    # Whether the run of some actions is still there.
    sa.Index("ix_runs_acting", "decision_id", postgresql_where=sa.text("job = 'onceonly.actions'")),
    # Whether a schedule's earlier runs are still active.
    sa.Index(
        "ix_runs_schedule",
        "tenant_id",
        "schedule",
        postgresql_where=sa.text("schedule IS NOT NULL AND state IN ('queued', 'in_progress')"),
    ),
    sa.Index(
        "ix_runs_claims",
        "lease_until_at",
        postgresql_where=sa.text("state = 'in_progress' AND owner = 'server'"),
    ),
)

run_actions = sa.Table(
    "run_actions",
    metadata,
    # What was decided on the tool calls of a run with `metadata.actions`, each once, and what came of it.
    sa.Column("tenant_id", sa.Text, primary_key=True),
    # The decision that let the run in: one per taking of its key, the same in every attempt.
    sa.Column("run_decision_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    _required("decision_id", sa.BigInteger()),
    _required("code", sa.Text()),
    _required("cost_micro_usd", sa.BigInteger(), "0"),
    _required("call_key", sa.Text()),
    # The run that carries the call out, or has done so for somebody else; its key may be taken again later.
    sa.Column("call_id", sa.BigInteger),
    sa.Column("call_decision_id", sa.BigInteger),
    _required("at", Time, "onceonly_now()"),
    sa.Column("done_at", Time),
    sa.Column("outcome", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("result", JSON),
    # Whether an action still waits for a call, and what is left of runs whose keys were taken again.
    sa.Index("ix_run_actions_call", "call_id", postgresql_where=sa.text("done_at IS NULL")),
    sa.Index("ix_run_actions_old", "at"),
)

agents = sa.Table(
    "agents",
    metadata,
    # One row has all that a decision reads: whoever decides, reserves or flips the switch holds its lock.
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("agent_id", sa.Text, primary_key=True),
    sa.Column("disabled_at", Time),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("policy", JSONB),
    _required("policy_version", sa.Integer(), "0"),
    sa.Column("hour_at", Time),
    _required("hour_actions", sa.BigInteger(), "0"),
    sa.Column("day_on", sa.Date),
    _required("day_spend_micro_usd", sa.BigInteger(), "0"),
    _required("day_calls", JSONB(), "'{}'"),
)

policy_versions = sa.Table(
    "policy_versions",
    metadata,
    # Append-only: who changed which policy, when, and what it was then; and who threw or released the switch, which
    # leaves the policy, and so its version, as they are.
    _identity(),
    _required("tenant_id", sa.Text()),
    _required("agent_id", sa.Text()),
    _required("version", sa.Integer()),
    _required("at", Time, "onceonly_now()"),
    sa.Column("actor", sa.Text),
    _required("change", sa.Text()),
    sa.Column("reason", sa.Text),
    sa.Column("policy", JSONB),
    _written_by(),
    sa.Index(
        "uq_policy_versions_version",
        "tenant_id",
        "agent_id",
        "version",
        unique=True,
        postgresql_where=sa.text("policy IS NOT NULL"),
    ),
    sa.Index("ix_policy_versions_written", "transaction_id", "id"),
    sa.Index("ix_policy_versions_agent", "tenant_id", "agent_id", sa.text("id DESC")),
)

tools = sa.Table(
    "tools",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("scope_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    _required("url", sa.Text()),
    _required("auth_type", sa.Text()),
    _required("secret_id", sa.Text()),
    _required("secret_mask", sa.Text()),
    # Encrypted with a key that is not in the database, and bound to this row: see vault.py.
    _required("secret_sealed", sa.Text()),
    _required("timeout_ms", sa.Integer()),
    _required("max_retries", sa.Integer()),
    _required("enabled", sa.Boolean()),
    sa.Column("description", sa.Text),
    _required("effect", sa.Text()),
    sa.Column("confirm_url", sa.Text),
    sa.Column("dedup_ttl_s", sa.Integer),
    _required("created_at", Time, "onceonly_now()"),
    _required("updated_at", Time, "onceonly_now()"),
    sa.CheckConstraint("effect IN ('read', 'idempotent', 'reconcilable', 'irreversible')", name="effect"),
    sa.CheckConstraint("(effect = 'reconcilable') = (confirm_url IS NOT NULL)", name="confirm_url"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    _required("queue", sa.Text()),
    sa.Column("match", sa.Text),
    _required("max_attempts", sa.Integer()),
    sa.Column("time_limit_s", sa.Integer),
    _required("description", sa.Text()),
    _required("registered_at", Time, "onceonly_now()"),
    # Of a Python function that agents may call as a tool; null for any other job.
    sa.Column("effect", sa.Text),
    sa.Column("max_crashes", sa.Integer),
)

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("task", sa.Text),
    sa.Column("cron", sa.Text),
    sa.Column("every_s", sa.Integer),
    sa.Column("at", Time),
    _required("tz", sa.Text()),
    # Ticks of an interval are counted from here.
    _required("anchor_at", Time),
    sa.Column("start_at", Time),
    sa.Column("end_at", Time),
    sa.Column("payload", JSON),
    sa.Column("metadata", JSON),
    sa.Column("agent_id", sa.Text),
    sa.Column("queue", sa.Text),
    sa.Column("ttl_s", sa.Integer),
    _required("misfire", sa.Text()),
    _required("misfire_grace_s", sa.Integer()),
    _required("catch_up_limit", sa.Integer()),
    _required("jitter_s", sa.Integer()),
    _required("overlap", sa.Text()),
    # Null where there is no further tick. Moving it and making the tick's run are one transaction.
    sa.Column("next_tick_at", Time),
    sa.Column("last_tick_at", Time),
    sa.Column("paused_at", Time),
    _required("origin", sa.Text()),
    # Which fields of a schedule declared in code were changed over the API: declarations leave them alone.
    sa.Column("edited", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
    _required("version", sa.Integer(), "1"),
    _required("created_at", Time, "onceonly_now()"),
    _required("created_by", sa.Text()),
    _required("updated_at", Time, "onceonly_now()"),
    _required("updated_by", sa.Text()),
    # Of a schedule declared in code: it was deleted over the API, and declarations must not bring it back.
    sa.Column("deleted_at", Time),
    sa.CheckConstraint("num_nonnulls(cron, every_s, at) = 1", name="timing"),
    sa.CheckConstraint("every_s >= 1", name="every_s"),
    sa.CheckConstraint("misfire IN ('skip', 'once', 'catch_up')", name="misfire"),
    sa.CheckConstraint("overlap IN ('allow', 'skip', 'cancel_previous')", name="overlap"),
    sa.CheckConstraint("origin IN ('code', 'api')", name="origin"),
    sa.Index(
        "ix_schedules_due",
        "next_tick_at",
        postgresql_where=sa.text("paused_at IS NULL AND deleted_at IS NULL AND next_tick_at IS NOT NULL"),
    ),
)

schedule_ticks = sa.Table(
    "schedule_ticks",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("tick_at", Time, primary_key=True),
    # Of its run, or that its run would have had.
    sa.Column("key", sa.Text, primary_key=True),
    _required("state", sa.Text()),
    _required("source", sa.Text()),
    sa.Column("detail", sa.Text),
    _required("recorded_at", Time, "onceonly_now()"),
    sa.CheckConstraint("state IN ('fired', 'skipped', 'misfired', 'refused')", name="state"),
    sa.CheckConstraint("source IN ('scheduler', 'trigger', 'backfill')", name="source"),
    sa.Index("ix_schedule_ticks_recorded_at", "recorded_at"),
)

usage_counters = sa.Table(
    "usage_counters",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    # Concurrent requests add to different rows, which are summed on reading.
    sa.Column("slot", sa.SmallInteger, primary_key=True),
    _required("usage", sa.BigInteger(), "0"),
    _required("requests_total", sa.BigInteger(), "0"),
    _required("blocked_total", sa.BigInteger(), "0"),
    _required("charged_total", sa.BigInteger(), "0"),
    _required("polling_total", sa.BigInteger(), "0"),
)

usage_caps = sa.Table(
    "usage_caps",
    metadata,
    # One row where a hard cap must be exact: whoever may use up quota holds its lock first.
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("month", sa.Date, primary_key=True),
    _required("usage", sa.BigInteger(), "0"),
)

run_events = sa.Table(
    "run_events",
    metadata,
    _identity(),
    _required("tenant_id", sa.Text()),
    _required("run_id", sa.Text()),
    _required("at", Time, "onceonly_now()"),
    _required("type", sa.Text()),
    sa.Column("status", sa.Text),
    sa.Column("step", sa.Text),
    sa.Column("tool", sa.Text),
    sa.Column("req_id", sa.Text),
    sa.Column("lease_id", sa.Text),
    sa.Column("agent_id", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("duration_ms", sa.BigInteger),
    sa.Column("data", JSON),
    sa.Index("ix_run_events_timeline", "tenant_id", "run_id", "at", "id"),
)

timelines = sa.Table(
    "timelines",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    # C collation, so that a prefix search is an index range.
    sa.Column("run_id", sa.Text(collation="C"), primary_key=True),
    _required("last_at", Time),
    _required("last_type", sa.Text()),
    sa.Column("last_status", sa.Text),
    _required("events_count", sa.BigInteger(), "1"),
    sa.Index("ix_timelines_latest", "tenant_id", sa.text("last_at DESC")),
    sa.Index("ix_timelines_old", "last_at"),
)

feed_events = sa.Table(
    "feed_events",
    metadata,
    _identity(),
    _required("tenant_id", sa.Text()),
    _required("at", Time, "onceonly_now()"),
    _required("type", sa.Text()),
    sa.Column("kind", sa.Text),
    sa.Column("key", sa.Text),
    sa.Column("status", sa.Text),
    sa.Column("agent_id", sa.Text),
    sa.Column("tool", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("data", JSON),
    sa.Index("ix_feed_events_recent", "tenant_id", sa.text("id DESC")),
    sa.Index("ix_feed_events_old", "at"),
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    _required("url", sa.Text()),
    _required("secret_id", sa.Text()),
    _required("secret_mask", sa.Text()),
    # As a tool's: see vault.py.
    _required("secret_sealed", sa.Text()),
    _required("created_at", Time, "onceonly_now()"),
    _required("updated_at", Time, "onceonly_now()"),
)

notifications = sa.Table(
    "notifications",
    metadata,
    # The outbox of the webhooks: a row is written by the statement that is its cause.
    _identity(),
    _required("message_id", sa.Text(), "'msg_' || gen_random_uuid()"),
    _required("tenant_id", sa.Text()),
    _required("at", Time, "onceonly_now()"),
    _required("type", sa.Text()),
    _required("data", JSON()),
    # Of those that have it, one per tenant and value.
    sa.Column("once", sa.Text),
    _required("state", sa.Text(), "'pending'"),
    _required("attempts", sa.Integer(), "0"),
    sa.Column("due_at", Time, server_default=sa.text("onceonly_now()")),
    sa.Column("delivered_at", Time),
    sa.Column("status", sa.Integer),
    sa.Column("error", sa.Text),
    sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
    sa.UniqueConstraint("tenant_id", "once"),
    sa.Index("ix_notifications_due", "tenant_id", "due_at", postgresql_where=sa.text("state = 'pending'")),
    sa.Index("ix_notifications_latest", "tenant_id", sa.text("id DESC")),
    sa.Index("ix_notifications_old", "at"),
)

audit_decisions = sa.Table(
    "audit_decisions",
    metadata,
    # Append-only: the serving role may insert and read, never change. A run names its decision in the
    # statement that makes both, so the id may be given. Sealed rows are hashed without their NULLs: columns
    # that are added later have to be nullable, or every seal would break.
    _identity(always=False),
    _required("tenant_id", sa.Text()),
    _required("at", Time, "onceonly_now()"),
    sa.Column("actor", sa.Text),
    sa.Column("agent_id", sa.Text),
    _required("tool", sa.Text()),
    sa.Column("run_key", sa.Text),
    _required("allowed", sa.Boolean()),
    _required("decision", sa.Text()),
    _required("policy_reason", sa.Text()),
    _required("policy_code", sa.Text()),
    _required("risk_level", sa.Text()),
    sa.Column("args_hash", sa.Text),
    _required("spend_micro_usd", sa.BigInteger(), "0"),
    sa.Column("policy_version", sa.Integer),
    _written_by(),
    sa.Index("ix_audit_decisions_written", "transaction_id", "id"),
    sa.Index("ix_audit_decisions_run", "tenant_id", "run_key"),
    sa.Index("ix_audit_decisions_agent", "tenant_id", "agent_id", sa.text("id DESC")),
)

audit_outcomes = sa.Table(
    "audit_outcomes",
    metadata,
    # At most one outcome per decision: the primary key says so.
    sa.Column("decision_id", sa.BigInteger, primary_key=True, autoincrement=False),
    _required("tenant_id", sa.Text()),
    _required("at", Time, "onceonly_now()"),
    _required("outcome", sa.Text()),
    sa.Column("error_code", sa.Text),
    _required("spend_micro_usd", sa.BigInteger(), "0"),
    _required("overrun", sa.Boolean(), "false"),
    sa.Column("latency_ms", sa.BigInteger),
    _written_by(),
    sa.Index("ix_audit_outcomes_written", "transaction_id", "decision_id"),
)

audit_seals = sa.Table(
    "audit_seals",
    metadata,
    # A chain: `previous` is unique, so it cannot fork, whoever seals.
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("previous", sa.Text, nullable=False, unique=True),
    _required("hash", sa.Text()),
    _required("row_count", sa.Integer()),
    _required("sealed_at", Time),
    # Of `cluster`, a Postgres system identifier, every row of an older transaction than this one is sealed.
    _required("horizon", sa.BigInteger()),
    _required("cluster", sa.BigInteger()),
)

audit_sealed = sa.Table(
    "audit_sealed",
    metadata,
    # Each row is sealed once: the primary key says so.
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("row_id", sa.BigInteger, primary_key=True, autoincrement=False),
    _required("seal", sa.BigInteger()),
    _required("position", sa.Integer()),
    _required("row_hash", sa.Text()),
    sa.UniqueConstraint("seal", "position"),
)

audit_checkpoints = sa.Table(
    "audit_checkpoints",
    metadata,
    # Where verification goes on after the rows up to a seal were exported and deleted.
    sa.Column("seal", sa.BigInteger, primary_key=True, autoincrement=False),
    _required("hash", sa.Text()),
    _required("rows_pruned", sa.BigInteger()),
    _required("export_sha256", sa.Text()),
    _required("pruned_at", Time, "onceonly_now()"),
)

workers = sa.Table(
    "workers",
    metadata,
    # What each worker says of itself. Identity is random, per process: names and process ids are for people.
    sa.Column("id", sa.Text, primary_key=True),
    _required("name", sa.Text()),
    _required("hostname", sa.Text()),
    _required("pid", sa.Integer()),
    sa.Column("queues", ARRAY(sa.Text), nullable=False),
    _required("concurrency", sa.Integer()),
    _required("state", sa.Text()),
    _required("active", sa.Integer(), "0"),
    _required("started_at", Time, "onceonly_now()"),
    _required("seen_at", Time, "onceonly_now()"),
    sa.Column("last_message_at", Time),
    sa.Column("last_claim_at", Time),
    sa.CheckConstraint("state IN ('serving', 'draining', 'stuck')", name="state"),
    sa.Index("ix_workers_seen", "seen_at"),
)

APPEND_ONLY = (audit_decisions, audit_outcomes, policy_versions, audit_seals, audit_sealed, audit_checkpoints)
