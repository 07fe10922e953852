"""How long a tool's calls answer their repeats, the time limit in force of a run, and who threw an agent's switch.

Safe because: it only adds nullable columns, which the previous version ignores, and columns of `policy_versions` with
defaults, which it does not name. That table is rewritten for its new key; it has a row per change of a policy, and
LOCK_TIMEOUT bounds how long this may hold up policy changes. The previous version writes no row for the switch.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tools", sa.Column("dedup_ttl_s", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("time_limit_s", sa.Integer(), nullable=True))
    op.drop_constraint(op.f("pk_policy_versions"), "policy_versions")
    op.add_column(
        "policy_versions", sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)
    )
    op.create_primary_key(op.f("pk_policy_versions"), "policy_versions", ["id"])
    op.add_column("policy_versions", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column(
        "policy_versions",
        sa.Column(
            "transaction_id",
            sa.BigInteger(),
            server_default=sa.text("CAST(CAST(pg_current_xact_id() AS text) AS bigint)"),
            nullable=False,
        ),
    )
    op.alter_column("policy_versions", "policy", nullable=True)
    op.create_index(
        "uq_policy_versions_version",
        "policy_versions",
        ["tenant_id", "agent_id", "version"],
        unique=True,
        postgresql_where=sa.text("policy IS NOT NULL"),
    )
    op.create_index("ix_policy_versions_written", "policy_versions", ["transaction_id", "id"])
    op.create_index(
        "ix_policy_versions_agent", "policy_versions", ["tenant_id", "agent_id", sa.literal_column("id DESC")]
    )


def downgrade() -> None:
    op.drop_index("ix_policy_versions_agent", table_name="policy_versions")
    op.drop_index("ix_policy_versions_written", table_name="policy_versions")
    op.drop_index("uq_policy_versions_version", table_name="policy_versions")
    op.execute("DELETE FROM policy_versions WHERE policy IS NULL")
    op.alter_column("policy_versions", "policy", nullable=False)
    op.drop_column("policy_versions", "transaction_id")
    op.drop_column("policy_versions", "reason")
    op.drop_constraint(op.f("pk_policy_versions"), "policy_versions")
    op.drop_column("policy_versions", "id")
    op.create_primary_key(op.f("pk_policy_versions"), "policy_versions", ["tenant_id", "agent_id", "version"])
    op.drop_column("runs", "time_limit_s")
    op.drop_column("tools", "dedup_ttl_s")
