"""Indexes to find dead letters, and what the retention time is over for.

Safe because: each is built while its table is written to, and a build that failed is repeated.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

from onceonly_jobs.store.schema_changes import build_index, drop_index

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

OVER = "state IN ('completed', 'failed', 'cancelled')"


def upgrade() -> None:
    build_index("ix_runs_dead", "runs", ["tenant_id", "done_at", "id"], where="dead_lettered")
    build_index("ix_runs_retention", "runs", ["retain_until_at"], where=OVER)
    build_index("ix_runs_acting", "runs", ["decision_id"], where="job = 'onceonly.actions'")
    build_index("ix_run_actions_call", "run_actions", ["call_id"], where="done_at IS NULL")
    build_index("ix_run_actions_old", "run_actions", ["at"])
    build_index("ix_locks_expired", "locks", ["locked_until_at"])
    build_index("ix_timelines_old", "timelines", ["last_at"])
    build_index("ix_feed_events_old", "feed_events", ["at"])


def downgrade() -> None:
    drop_index("ix_feed_events_old", "feed_events")
    drop_index("ix_timelines_old", "timelines")
    drop_index("ix_locks_expired", "locks")
    drop_index("ix_run_actions_old", "run_actions")
    drop_index("ix_run_actions_call", "run_actions")
    drop_index("ix_runs_acting", "runs")
    drop_index("ix_runs_retention", "runs")
    drop_index("ix_runs_dead", "runs")
