"""Seals over the audit trail.

Safe because: it only adds tables, and columns whose default is stable, so that Postgres does not rewrite the
tables. The previous version names the columns it writes and so ignores them. The two indexes hold up writers
while they are made; LOCK_TIMEOUT and STATEMENT_TIMEOUT bound for how long.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEYS = {"audit_decisions": "id", "audit_outcomes": "decision_id"}


def upgrade() -> None:
    for table, key in KEYS.items():
        op.add_column(
            table,
            sa.Column(
                "transaction_id",
                sa.BigInteger(),
                server_default=sa.text("CAST(CAST(pg_current_xact_id() AS text) AS bigint)"),
                nullable=False,
            ),
        )
        op.create_index(f"ix_{table}_written", table, ["transaction_id", key], unique=False)
    op.create_table(
        "audit_seals",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("row_count", sa.Integer(), nullable=False),
        sa.Column("sealed_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("horizon", sa.BigInteger(), nullable=False),
        sa.Column("cluster", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_seals")),
        sa.UniqueConstraint("previous", name=op.f("uq_audit_seals_previous")),
    )
    op.create_table(
        "audit_sealed",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seal", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("row_hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "row_id", name=op.f("pk_audit_sealed")),
        sa.UniqueConstraint("seal", "position", name=op.f("uq_audit_sealed_seal_position")),
    )


def downgrade() -> None:
    op.drop_table("audit_sealed")
    op.drop_table("audit_seals")
    for table in KEYS:
        op.drop_index(f"ix_{table}_written", table_name=table)
        op.drop_column(table, "transaction_id")
