"""What reliability needs beside the runs: tokens that grow for ever, workers that can be watched, checkpoints.

Safe because: it adds tables and a sequence of which the previous version knows nothing, and a column that it ignores.
Reading the largest token takes a while on a large table, but holds nobody up.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from onceonly_jobs.store.schema_changes import unhurried

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TIME = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("onceonly_now()")

# The previous version adds 1 to a run's own token. What it adds while both serve must stay below the sequence, or a
# key could see a smaller token once its row was deleted.
ABOVE_ALL_TOKENS = """
SELECT setval('fencing_tokens', coalesce((SELECT max(fencing_token) + 1000000 FROM runs), 1), false)
"""


def upgrade() -> None:
    op.execute("CREATE SEQUENCE fencing_tokens AS bigint")
    with unhurried():
        op.execute(ABOVE_ALL_TOKENS)
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("queues", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("active", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", TIME, server_default=NOW, nullable=False),
        sa.Column("seen_at", TIME, server_default=NOW, nullable=False),
        sa.Column("last_message_at", TIME, nullable=True),
        sa.Column("last_claim_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        sa.CheckConstraint("state IN ('serving', 'draining', 'stuck')", name=op.f("ck_workers_state")),
    )
    op.create_index("ix_workers_seen", "workers", ["seen_at"])
    op.create_table(
        "audit_checkpoints",
        sa.Column("seal", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("rows_pruned", sa.BigInteger(), nullable=False),
        sa.Column("export_sha256", sa.Text(), nullable=False),
        sa.Column("pruned_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("seal", name=op.f("pk_audit_checkpoints")),
    )
    op.add_column("jobs", sa.Column("max_crashes", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "max_crashes")
    op.drop_table("audit_checkpoints")
    op.drop_table("workers")
    op.execute("DROP SEQUENCE fencing_tokens")
