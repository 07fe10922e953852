"""Confirmations of unknown calls.

Safe because: it only adds columns that the previous version ignores, one of them with a constant default. The two
indexes hold only calls of unknown outcome; LOCK_TIMEOUT bounds how long making them may hold up traffic.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("confirm_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column(
        "runs", sa.Column("confirmations", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    unknown = sa.text("state = 'unknown'")
    op.create_index("ix_runs_unknown", "runs", ["tenant_id", "started_at", "id"], postgresql_where=unknown)
    op.create_index("ix_runs_confirm", "runs", ["confirm_at"], postgresql_where=unknown)


def downgrade() -> None:
    op.drop_index("ix_runs_confirm", table_name="runs")
    op.drop_index("ix_runs_unknown", table_name="runs")
    op.drop_column("runs", "confirmations")
    op.drop_column("runs", "confirm_at")
