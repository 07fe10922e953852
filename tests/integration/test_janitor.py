"""The janitor of a scheduler, `onceonly-jobs prune`, and who reads a run while it is deleted."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from onceonly_jobs import metrics
from onceonly_jobs.api.state import State
from onceonly_jobs.api.waiting import wait_until_settled
from onceonly_jobs.cli.main import build
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.leases import LeaseRequest
from onceonly_jobs.contracts.locks import CheckLockRequest
from onceonly_jobs.domain.runs import Run
from onceonly_jobs.services import locks, retention, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock
from onceonly_jobs.worker.janitor import Janitor


def old_locks(db: Database, caller: Caller, clock: Clock, count: int) -> None:
    for n in range(count):
        db.run(locks.check, caller, CheckLockRequest(key=f"k{n}", ttl=60), None)
    clock.advance(61)


def pruned_locks() -> float:
    return metrics.REGISTRY.get_sample_value("onceonly_pruned_rows_total", {"kind": "locks"}) or 0


def test_a_janitor_deletes_what_is_old_in_batches_and_counts_it(
    settings: Settings, db: Database, caller: Caller, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    old_locks(db, caller, clock, 5)
    before = pruned_locks()
    janitor = Janitor(settings)
    assert janitor.tick() == 5
    assert janitor.tick() == 0
    janitor.close()
    assert pruned_locks() - before == 5


def test_a_kind_that_cannot_be_pruned_holds_up_no_other(
    settings: Settings, db: Database, caller: Caller, clock: Clock, owner_url: str
) -> None:
    old_locks(db, caller, clock, 2)
    owner = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with owner.begin() as connection:
        connection.exec_driver_sql("REVOKE SELECT ON SEQUENCE fencing_tokens FROM onceonly_test_app")
    janitor = Janitor(settings)
    assert janitor.tick() == 2
    janitor.close()


def test_prune_says_what_it_would_delete_and_deletes_that(
    database_url: str, db: Database, caller: Caller, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", database_url)
    old_locks(db, caller, clock, 3)

    def said(*words: str) -> str:
        done = CliRunner().invoke(build(["prune"]), ["prune", *words])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "locks: 3 to delete" in said("--dry-run")
    assert "locks: 3 deleted" in said()
    assert "locks: 0 to delete" in said("--dry-run")


def test_who_waits_for_a_run_that_is_deleted_gets_the_last_that_was_seen(
    settings: Settings, db: Database, caller: Caller, owner_url: str
) -> None:
    run: Run = db.run(runs.take, caller, runs.lease_taking(caller, LeaseRequest(key="k", ttl=60))).run
    owner = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with owner.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")

    async def wait() -> Run:
        state = State.of(settings)
        try:
            return await wait_until_settled(state, caller.tenant_id, run, 30)
        finally:
            await state.aclose()

    assert asyncio.run(wait()) == run
