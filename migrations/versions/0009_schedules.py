"""Schedules and their ticks.

Safe because: it adds tables of which the previous version knows nothing, and a column that it ignores. The index holds
only runs of schedules; LOCK_TIMEOUT bounds how long making it may hold up traffic.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("onceonly_now()")
ACTIVE = sa.text("schedule IS NOT NULL AND state IN ('queued', 'in_progress')")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=True),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("every_s", sa.Integer(), nullable=True),
        sa.Column("at", TIME, nullable=True),
        sa.Column("tz", sa.Text(), nullable=False),
        sa.Column("anchor_at", TIME, nullable=False),
        sa.Column("start_at", TIME, nullable=True),
        sa.Column("end_at", TIME, nullable=True),
        sa.Column("payload", postgresql.JSON(), nullable=True),
        sa.Column("metadata", postgresql.JSON(), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("ttl_s", sa.Integer(), nullable=True),
        sa.Column("misfire", sa.Text(), nullable=False),
        sa.Column("misfire_grace_s", sa.Integer(), nullable=False),
        sa.Column("catch_up_limit", sa.Integer(), nullable=False),
        sa.Column("jitter_s", sa.Integer(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("next_tick_at", TIME, nullable=True),
        sa.Column("last_tick_at", TIME, nullable=True),
        sa.Column("paused_at", TIME, nullable=True),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("edited", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("updated_at", TIME, server_default=NOW, nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("deleted_at", TIME, nullable=True),
        sa.CheckConstraint("num_nonnulls(cron, every_s, at) = 1", name=op.f("ck_schedules_timing")),
        sa.CheckConstraint("every_s >= 1", name=op.f("ck_schedules_every_s")),
        sa.CheckConstraint("misfire IN ('skip', 'once', 'catch_up')", name=op.f("ck_schedules_misfire")),
        sa.CheckConstraint(
            "overlap IN ('allow', 'skip', 'cancel_previous')", name=op.f("ck_schedules_overlap")
        ),
        sa.CheckConstraint("origin IN ('code', 'api')", name=op.f("ck_schedules_origin")),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_schedules")),
    )
    op.create_index(
        "ix_schedules_due",
        "schedules",
        ["next_tick_at"],
        postgresql_where=sa.text("paused_at IS NULL AND deleted_at IS NULL AND next_tick_at IS NOT NULL"),
    )
    op.create_table(
        "schedule_ticks",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tick_at", TIME, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("recorded_at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint(
            "state IN ('fired', 'skipped', 'misfired', 'refused')", name=op.f("ck_schedule_ticks_state")
        ),
        sa.CheckConstraint(
            "source IN ('scheduler', 'trigger', 'backfill')", name=op.f("ck_schedule_ticks_source")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", "tick_at", "key", name=op.f("pk_schedule_ticks")),
    )
    op.create_index("ix_schedule_ticks_recorded_at", "schedule_ticks", ["recorded_at"])
    op.add_column("runs", sa.Column("schedule", sa.Text(), nullable=True))
    op.create_index("ix_runs_schedule", "runs", ["tenant_id", "schedule"], postgresql_where=ACTIVE)


def downgrade() -> None:
    op.drop_index("ix_runs_schedule", table_name="runs")
    op.drop_column("runs", "schedule")
    op.drop_table("schedule_ticks")
    op.drop_table("schedules")
