"""Delayed runs wait in Postgres: no message says when to run, and the broker holds no copy of the backlog."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

import onceonly_jobs
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.dispatch.relay import Relay
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock

HOUR_S = 3600
MANY = 20_000
PACKAGE = Path(onceonly_jobs.__file__).parent
TIMED = {"eta", "countdown", "expires"}


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def relay(settings: Settings, db: Database) -> Iterator[Relay]:
    settings = settings.model_copy(update={"broker_backlog": 50, "relay_batch": 100})
    publisher = Publisher(settings)
    yield Relay(settings, db, publisher, HintSender(settings))
    publisher.close()


def messages(broker: redis.Redis) -> list[dict[str, Any]]:
    found: Any = broker.lrange("onceonly:onceonly", 0, -1)
    return [json.loads(message) for message in found]


def delay(db: Database, caller: Caller, key: str) -> None:
    job = JobSpec(name="echo", queue="onceonly")
    taking = runs.job_taking(caller, job, key=key, ttl_s=60, metadata=None, delay_s=HOUR_S)
    db.run(runs.take, caller, taking)


def test_no_message_says_when_to_run(
    relay: Relay, db: Database, caller: Caller, clock: Clock, broker: redis.Redis
) -> None:
    """A broker that holds a message back delivers it again after its visibility timeout."""
    delay(db, caller, "k")
    relay.tick()
    assert messages(broker) == []
    clock.advance(HOUR_S)
    relay.tick()
    [message] = messages(broker)
    assert (message["headers"]["eta"], message["headers"]["expires"]) == (None, None)
    assert "expiration" not in message["properties"]
    _, _, embedded = json.loads(base64.b64decode(message["body"]))
    assert not any(embedded.values()), "no callbacks, no chains"


def test_nothing_of_ours_asks_celery_to_wait() -> None:
    """`@once` repeats somebody's own task, in their own app: that is theirs."""
    asked = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE) != Path("integrations/celery.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and TIMED & {keyword.arg for keyword in node.keywords}
    ]
    assert asked == []


def test_many_delayed_runs_leave_the_broker_empty_and_then_bounded(
    relay: Relay, db: Database, caller: Caller, clock: Clock, broker: redis.Redis, owner_url: str
) -> None:
    """Workers hold what the broker gives them: their memory does not grow with the backlog."""
    delay(db, caller, "k")
    copies = sa.text(f"""
        INSERT INTO runs (tenant_id, key, owner, state, run_id, lease_id, lease_ttl_s, job, queue, first_seen_at,
                          due_at, publish_at)
        SELECT tenant_id, key || n, owner, state, run_id, lease_id, lease_ttl_s, job, queue, first_seen_at,
               due_at, publish_at
        FROM runs, generate_series(2, {MANY}) n
    """)
    with sa.create_engine(owner_url, poolclass=sa.NullPool).begin() as owner:
        assert owner.execute(copies).rowcount == MANY - 1
    relay.tick()
    assert messages(broker) == []
    clock.advance(HOUR_S)
    for _ in range(5):
        relay.tick()
    assert 50 <= len(messages(broker)) < 50 + 100, "at most a batch above the limit"
