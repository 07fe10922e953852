"""Operations that meet at rows which each of them locks: all in one order, or each waits for the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from onceonly_jobs.store.database import Database

_WAITING = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def held_up_at(db: Database, key: str, *questions: Callable[[], Any]) -> list[Any]:
    """What each is answered, asked one after the other while a run's row is locked: each waits before the next is
    asked, and then the row comes free."""
    with ThreadPoolExecutor(len(questions)) as pool, db.engine.connect() as busy, db.engine.connect() as eye:
        busy.execute(sa.text("SELECT FROM runs WHERE key = :key FOR UPDATE"), {"key": key})
        asked = []
        for question in questions:
            asked.append(pool.submit(question))
            while eye.execute(_WAITING).scalar_one() < len(asked):
                assert not asked[-1].done(), "it does not wait"
                eye.rollback()
        busy.rollback()
        return [each.result() for each in asked]
