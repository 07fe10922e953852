"""Webhooks and the notifications that they are to be sent, and an index to find runs that went wrong.

Safe because: it only adds tables, of which the previous version knows nothing, and an index over the runs that
failed or were cancelled; LOCK_TIMEOUT bounds how long making it may hold up traffic.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("onceonly_now()")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret_id", sa.Text(), nullable=False),
        sa.Column("secret_mask", sa.Text(), nullable=False),
        sa.Column("secret_sealed", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("updated_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_webhooks")),
    )
    op.create_table(
        "notifications",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "message_id", sa.Text(), server_default=sa.text("'msg_' || gen_random_uuid()"), nullable=False
        ),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("at", TIME, server_default=NOW, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSON(), nullable=False),
        sa.Column("once", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", TIME, server_default=NOW, nullable=True),
        sa.Column("delivered_at", TIME, nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name=op.f("ck_notifications_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notifications")),
        sa.UniqueConstraint("tenant_id", "once", name=op.f("uq_notifications_tenant_id_once")),
    )
    op.create_index(
        "ix_notifications_due",
        "notifications",
        ["tenant_id", "due_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_notifications_latest", "notifications", ["tenant_id", sa.text("id DESC")])
    op.create_index("ix_notifications_old", "notifications", ["at"])
    op.create_index(
        "ix_runs_stopped",
        "runs",
        ["tenant_id", sa.text("id DESC")],
        postgresql_where=sa.text("state IN ('failed', 'cancelled')"),
    )


def downgrade() -> None:
    op.drop_index("ix_runs_stopped", table_name="runs")
    op.drop_table("notifications")
    op.drop_table("webhooks")
