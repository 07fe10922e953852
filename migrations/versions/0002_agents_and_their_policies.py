"""Agents and their policies.

Safe because: it only adds tables and columns with constant defaults, which the previous version ignores. The two
indexes are made on tables that are still small; LOCK_TIMEOUT bounds how long they may hold up traffic.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATES = "'queued', 'in_progress', 'completed', 'failed', 'cancelled'"


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("disabled_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("policy_version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("hour_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("hour_actions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("day_on", sa.Date(), nullable=True),
        sa.Column("day_spend_micro_usd", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "day_calls",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "agent_id", name=op.f("pk_agents")),
    )
    op.create_table(
        "policy_versions",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("onceonly_now()"),
            nullable=False,
        ),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "agent_id", "version", name=op.f("pk_policy_versions")),
    )
    op.add_column("audit_decisions", sa.Column("policy_version", sa.Integer(), nullable=True))
    op.create_index(
        "ix_audit_decisions_agent",
        "audit_decisions",
        ["tenant_id", "agent_id", sa.literal_column("id DESC")],
        unique=False,
    )
    op.add_column(
        "audit_outcomes", sa.Column("overrun", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("runs", sa.Column("tool", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("effect", sa.Text(), nullable=True))
    op.add_column(
        "runs", sa.Column("repeatable", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("runs", sa.Column("retention_s", sa.Integer(), nullable=True))
    op.drop_constraint("ck_runs_state", "runs")
    op.create_check_constraint("state", "runs", f"state IN ({STATES}, 'unknown')")
    op.add_column(
        "runs", sa.Column("reserved_micro_usd", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("runs", sa.Column("reserved_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.create_index(
        "ix_runs_agent",
        "runs",
        ["tenant_id", "agent_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'in_progress') AND owner = 'server'"),
    )


def downgrade() -> None:
    op.execute("UPDATE runs SET state = 'failed', error_code = 'outcome_unknown' WHERE state = 'unknown'")
    op.drop_constraint("ck_runs_state", "runs")
    op.create_check_constraint("state", "runs", f"state IN ({STATES})")
    for column in ("retention_s", "repeatable", "effect", "tool"):
        op.drop_column("runs", column)
    op.drop_index(
        "ix_runs_agent",
        table_name="runs",
        postgresql_where=sa.text("state IN ('queued', 'in_progress') AND owner = 'server'"),
    )
    op.drop_column("runs", "reserved_at")
    op.drop_column("runs", "reserved_micro_usd")
    op.drop_column("audit_outcomes", "overrun")
    op.drop_index("ix_audit_decisions_agent", table_name="audit_decisions")
    op.drop_column("audit_decisions", "policy_version")
    op.drop_table("policy_versions")
    op.drop_table("agents")
