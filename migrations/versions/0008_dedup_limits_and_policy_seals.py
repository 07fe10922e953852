"""How long a tool's calls answer their repeats, and the time limit in force of a run.

Safe because: it only adds nullable columns, which the previous version ignores.

Revision ID: 0008
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tools", sa.Column("dedup_ttl_s", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("time_limit_s", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "time_limit_s")
    op.drop_column("tools", "dedup_ttl_s")
