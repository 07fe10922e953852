"""What Postgres' planner is told where its statistics can't know better."""

from __future__ import annotations

import sqlalchemy as sa

from onceonly_jobs.store.statement import Statement, nothing

# Not SET LOCAL: this form takes no lock and no special syntax through poolers. It ends with the transaction.
_ORDERED = sa.text("SELECT set_config('enable_bitmapscan', 'off', true)")


def by_ordered_index() -> Statement[None]:
    """For the rest of the transaction: read an index from its beginning, and stop when there are enough rows.

    Minutes into a new backlog the statistics still say that hardly anything is queued. Then all of it is collected and
    sorted for the sake of its first few rows.
    """
    return Statement("planning.by_ordered_index", _ORDERED, nothing)
