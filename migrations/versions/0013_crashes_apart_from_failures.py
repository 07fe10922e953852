"""Crashes apart from failures, errors that are kept, who holds a claim, and what a replayed run concludes.

Safe because: it only adds columns that the previous version ignores, nullable or with a constant default, so no row is
rewritten and the table is locked for a moment; LOCK_TIMEOUT bounds how long it waits for that moment.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

COLUMNS = ("failures", "crashes", "max_crashes", "errors", "worker_id", "worker_pid", "concludes_id")


def upgrade() -> None:
    op.add_column("runs", sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("runs", sa.Column("crashes", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("runs", sa.Column("max_crashes", sa.Integer(), server_default=sa.text("3"), nullable=False))
    op.add_column("runs", sa.Column("errors", postgresql.JSONB(), nullable=True))
    op.add_column("runs", sa.Column("worker_id", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("worker_pid", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("concludes_id", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for column in reversed(COLUMNS):
        op.drop_column("runs", column)
