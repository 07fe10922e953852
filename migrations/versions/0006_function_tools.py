"""Python functions as tools: a job that is one has an effect class.

Safe because: it only adds a column that the previous version ignores.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("effect", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "effect")
