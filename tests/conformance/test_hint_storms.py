"""Everybody wakes for one run: one gets it, and the others ask once."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from support.storms import storm

from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import claims, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database

WORKERS = 200
WORK = JobSpec(name="work", queue="q")


def test_of_two_hundred_workers_for_one_run_each_asks_once_and_one_claims(
    db: Database, caller: Caller
) -> None:
    taking = runs.job_taking(caller, WORK, key="k", ttl_s=60, metadata=None)
    run = db.run(runs.take, caller, taking).run.id
    asked: Counter[str] = Counter()
    sa.event.listen(db.engine, "before_cursor_execute", lambda _, __, query, *___: asked.update([query]))
    got = storm(WORKERS, lambda: db.run(claims.claim, run, "work", 15.0, None))
    assert len([claim for claim in got if claim is not None]) == 1
    assert list(asked.values()) == [WORKERS]
