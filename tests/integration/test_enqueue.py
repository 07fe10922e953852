"""Enqueueing from Python: the rules of POST /ai/run, in a transaction of its own or in the caller's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from onceonly_jobs import Enqueued, Jobs
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.plans import LIMITS, Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import (
    EnqueueError,
    FingerprintMismatch,
    InvalidApiKey,
    NotFound,
    PlanLimitReached,
    UnknownTask,
)
from onceonly_jobs.services import account, claims
from onceonly_jobs.store.database import Database


@pytest.fixture
def jobs(settings: Settings, db: Database) -> Iterator[Jobs]:
    db.run(claims.announce, [JobSpec(name="report", queue="reports", max_attempts=4)])
    jobs = Jobs(settings, tenant="t")
    yield jobs
    jobs.close()


@pytest.fixture
def rows(db: Database) -> Any:
    """Every run of the database, as stored."""

    def read() -> list[dict[str, Any]]:
        with db.engine.connect() as connection:
            return [
                dict(row) for row in connection.exec_driver_sql("SELECT * FROM runs ORDER BY id").mappings()
            ]

    return read


@pytest.fixture
def messages(redis_url: str) -> Any:
    def count(queue: str = "reports") -> int:
        with redis.Redis.from_url(redis_url) as client:
            return int(client.llen(f"onceonly:{queue}"))  # type: ignore[arg-type]

    return count


def test_the_first_call_acquires_and_publishes(jobs: Jobs, rows: Any, messages: Any) -> None:
    first = jobs.enqueue("report", key="k", payload={"n": 1}, metadata={"agent_id": "a", "run_id": "r"})
    assert (first.status, first.charged, first.run_id) == ("acquired", True, "r")
    assert first.lease_id is not None
    (row,) = rows()
    assert (row["job"], row["queue"], row["max_attempts"], row["state"]) == ("report", "reports", 4, "queued")
    assert row["metadata"] == {"agent_id": "a", "run_id": "r", "payload": {"n": 1}}
    assert (row["tenant_id"], row["agent_id"]) == ("t", "a")
    assert messages() == 1

    again = jobs.enqueue("report", key="k", payload={"n": 2})
    assert again == Enqueued(
        key="k", status="polling", run_id="r", lease_id=None, charged=False, result=None, error_code=None
    )
    assert messages() == 1


def test_a_finished_run_answers_with_its_result(jobs: Jobs, db: Database, rows: Any) -> None:
    jobs.enqueue("report", key="k")
    claim = db.run(claims.claim, rows()[0]["id"], "report", 15, None)
    assert claim is not None
    db.run(claims.complete, claim, {"n": 1}, 3600)
    assert jobs.enqueue("report", key="k").result == {"n": 1}
    assert jobs.status("k").status == "completed"


def test_a_delayed_run_is_published_by_the_relay_when_it_is_due(jobs: Jobs, rows: Any, messages: Any) -> None:
    jobs.enqueue("report", key="k", delay=timedelta(minutes=5))
    (row,) = rows()
    assert row["due_at"] - row["first_seen_at"] == timedelta(minutes=5)
    assert row["publish_at"] == row["due_at"]
    assert messages() == 0


def test_a_queue_may_be_given(jobs: Jobs, rows: Any, messages: Any) -> None:
    jobs.enqueue("report", key="k", queue="urgent")
    assert rows()[0]["queue"] == "urgent"
    assert messages("urgent") == 1


def test_what_a_full_queue_has_no_room_for_waits_for_nobody(
    settings: Settings, jobs: Jobs, rows: Any, messages: Any
) -> None:
    """Workers and relays may take it at once. The first one's message is given its time."""
    jobs = Jobs(settings.model_copy(update={"broker_backlog": 1}), tenant="t")
    for number in range(3):
        jobs.enqueue("report", key=f"k{number}")
    jobs.close()
    assert messages() == 1
    assert [row["publish_at"] <= row["due_at"] for row in rows()] == [False, True, True]


def test_the_async_face_does_the_same(settings: Settings, jobs: Jobs, messages: Any) -> None:
    async def enqueue() -> tuple[Enqueued, Enqueued]:
        own = Jobs(settings, tenant="t")
        answer = await own.enqueue_async("report", key="k"), await own.status_async("k")
        await own.aclose()
        return answer

    acquired, seen = asyncio.run(enqueue())
    assert (acquired.status, seen.status) == ("acquired", "polling")
    assert messages() == 1


# In the caller's transaction


def test_the_run_exists_exactly_when_the_callers_transaction_commits(
    jobs: Jobs, db: Database, rows: Any, messages: Any
) -> None:
    with Session(db.engine) as session:
        assert jobs.enqueue("report", key="k", connection=session.connection()).status == "acquired"
        session.rollback()
    assert rows() == []
    with pytest.raises(NotFound):
        jobs.status("k")

    with Session(db.engine) as session:
        assert jobs.enqueue("report", key="k", connection=session.connection()).status == "acquired"
        assert rows() == []
        session.commit()
    (row,) = rows()
    assert row["publish_at"] == row["due_at"] == row["first_seen_at"]  # due for the relay at once
    assert messages() == 0


def test_the_same_with_an_async_connection(jobs: Jobs, settings: Settings, rows: Any) -> None:
    async def both() -> None:
        engine = create_async_engine(settings.require_database_url())
        async with engine.connect() as connection:
            await jobs.enqueue_async("report", key="rolled back", connection=connection)
            await connection.rollback()
        async with engine.begin() as connection:
            await jobs.enqueue_async("report", key="committed", connection=connection)
        await engine.dispose()

    asyncio.run(both())
    assert [row["key"] for row in rows()] == ["committed"]


def test_two_transactions_with_one_key_acquire_it_once(jobs: Jobs, db: Database, rows: Any) -> None:
    """The second waits for the first, and sees what became of it."""
    answers: list[str] = []

    def second() -> None:
        with db.engine.begin() as connection:
            answers.append(jobs.enqueue("report", key="k", connection=connection).status)

    with db.engine.begin() as connection:
        answers.append(jobs.enqueue("report", key="k", connection=connection).status)
        thread = threading.Thread(target=second)
        thread.start()
    thread.join()
    assert answers == ["acquired", "polling"]
    assert len(rows()) == 1


def test_a_connection_must_be_one(jobs: Jobs, db: Database) -> None:
    with Session(db.engine) as session, pytest.raises(EnqueueError, match=r"session\.connection\(\)"):
        jobs.enqueue("report", key="k", connection=session)  # type: ignore[arg-type]


# Refusals


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": "x" * 257}, "key"),
        ({"key": "a\x00"}, "key"),
        ({"key": 5}, "key"),
        ({"payload": {"a": object()}}, "metadata"),
        ({"payload": {"a": float("nan")}}, "metadata"),
        ({"payload": {"a": "x" * 70_000}}, "metadata"),
        ({"metadata": "text"}, "metadata"),
        ({"metadata": {"agent_id": 5}}, "metadata"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": "60"}, "ttl"),
        ({"delay": -1}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": timedelta(days=-1)}, "delay"),
        ({"queue": ""}, "queue"),
        ({"queue": "a b"}, "queue"),
        ({"fingerprint": ""}, "fingerprint"),
    ],
)
def test_what_can_not_be_stored_is_refused(jobs: Jobs, rows: Any, given: dict[str, Any], field: str) -> None:
    with pytest.raises(EnqueueError, match=f"^{field}: "):
        jobs.enqueue("report", **{"key": "k", **given})
    assert rows() == []


def test_an_unknown_job_is_refused_until_a_worker_has_it(jobs: Jobs, db: Database) -> None:
    with pytest.raises(UnknownTask, match="known: report"):
        jobs.enqueue("new", key="k")
    db.run(claims.announce, [JobSpec(name="new", queue="q")])
    assert jobs.enqueue("new", key="k").status == "acquired"


def test_another_request_under_the_same_key_is_refused(jobs: Jobs) -> None:
    jobs.enqueue("report", key="k", fingerprint="f1")
    with pytest.raises(FingerprintMismatch):
        jobs.enqueue("report", key="k", fingerprint="f2")


def test_a_used_up_plan_is_refused_and_the_refusal_is_counted(
    settings: Settings, db: Database, jobs: Jobs, rows: Any
) -> None:
    db.run(account.ensure_tenant, "small", Plan.FREE)
    limit = LIMITS[Plan.FREE].ai_per_month
    with db.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO usage_caps (tenant_id, kind, month, usage) VALUES "
                "('small', 'ai', date_trunc('month', onceonly_now() AT TIME ZONE 'UTC'), :limit)"
            ),
            {"limit": limit},
        )
    small = Jobs(settings, tenant="small")
    with pytest.raises(PlanLimitReached):
        small.enqueue("report", key="k")
    small.close()
    assert rows() == []
    with db.engine.connect() as connection:
        blocked = connection.exec_driver_sql("SELECT sum(blocked_total) FROM usage_counters").scalar_one()
    assert blocked == 1


# Who enqueues


def test_a_new_tenant_is_made_on_first_use(settings: Settings, jobs: Jobs, db: Database) -> None:
    own = Jobs(settings, tenant="new")
    own.enqueue("report", key="k")
    own.close()
    tenant = db.run(account.find_tenant, "new")
    assert tenant is not None
    assert tenant.plan is Plan.AGENCY


def test_an_api_key_says_whose_run_it_is(
    settings: Settings, jobs: Jobs, db: Database, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.run(account.ensure_tenant, "other", Plan.PRO)
    key = db.run(account.create_key, "other")
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", settings.database_url or "")
    monkeypatch.setenv("ONCEONLY_API_KEY", key.api_key)
    own = Jobs.from_env()
    own.enqueue("report", key="k")
    own.close()
    assert rows()[0]["tenant_id"] == "other"

    monkeypatch.setenv("ONCEONLY_API_KEY", "once_live_unknown")
    with pytest.raises(InvalidApiKey):
        Jobs.from_env().enqueue("report", key="k2")


def test_a_disabled_tenant_enqueues_nothing(settings: Settings, jobs: Jobs, db: Database, rows: Any) -> None:
    db.run(account.ensure_tenant, "t", Plan.AGENCY)
    db.run(account.set_disabled, "t", True)
    with pytest.raises(EnqueueError, match="disabled"):
        jobs.enqueue("report", key="k")
    assert rows() == []


def test_a_dead_broker_does_not_keep_a_run_from_being_stored(
    settings: Settings, jobs: Jobs, rows: Any
) -> None:
    own = Jobs(settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}), tenant="t")
    assert own.enqueue("report", key="k").status == "acquired"
    own.close()
    assert rows()[0]["state"] == "queued"
