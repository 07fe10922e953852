"""Tools.

Safe because: it only adds a table, of which the previous version knows nothing.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tools",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("auth_type", sa.Text(), nullable=False),
        sa.Column("secret_id", sa.Text(), nullable=False),
        sa.Column("secret_mask", sa.Text(), nullable=False),
        sa.Column("secret_sealed", sa.Text(), nullable=False),
        sa.Column("timeout_ms", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("effect", sa.Text(), nullable=False),
        sa.Column("confirm_url", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("onceonly_now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("onceonly_now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "effect IN ('read', 'idempotent', 'reconcilable', 'irreversible')", name=op.f("ck_tools_effect")
        ),
        sa.CheckConstraint(
            "(effect = 'reconcilable') = (confirm_url IS NOT NULL)", name=op.f("ck_tools_confirm_url")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "scope_id", "name", name=op.f("pk_tools")),
    )


def downgrade() -> None:
    op.drop_table("tools")
