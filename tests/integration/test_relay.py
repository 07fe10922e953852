"""The relay: what is due goes out after its commit, and comes back when its worker dies."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery
from support.storms import storm

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import BrokerError, Publisher
from onceonly_jobs.dispatch.celeryconf import worker_conf
from onceonly_jobs.dispatch.hints import CHANNEL, HintSender, decode
from onceonly_jobs.dispatch.relay import Relay
from onceonly_jobs.dispatch.replies import KEPT_S
from onceonly_jobs.domain.runs import Claim, JobSpec
from onceonly_jobs.services import claims, runs
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock

LEASE_S = 15.0

Enqueue = Callable[..., int]
RelayOf = Callable[..., Relay]


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def enqueue(db: Database, caller: Caller) -> Enqueue:
    """Put a run under a key; its row's id."""

    def put(key: str, *, max_attempts: int = 3, queue: str = "onceonly", **options: Any) -> int:
        job = JobSpec(name="echo", queue=queue, max_attempts=max_attempts, max_crashes=max_attempts)
        metadata = {"agent_id": "a", "secret": "never to be seen"}
        taking = runs.job_taking(caller, job, key=key, ttl_s=60, metadata=metadata, **options)
        taken = db.run(runs.taking_operation(caller, taking), caller, taking)
        return taken.run.id

    return put


@pytest.fixture
def relay_of(settings: Settings, db: Database) -> Iterator[RelayOf]:
    """Makes relays, with other settings if given."""
    publishers = []

    def make(**changed: Any) -> Relay:
        changed_settings = settings.model_copy(update=changed)
        publishers.append(Publisher(changed_settings))
        return Relay(changed_settings, db, publishers[-1], HintSender(changed_settings))

    yield make
    for publisher in publishers:
        publisher.close()


def published(broker: redis.Redis, queue: str = "onceonly") -> list[dict[str, Any]]:
    """The messages in a queue, first published first."""
    raw: Any = broker.lrange(f"onceonly:{queue}", 0, -1)
    return [json.loads(message) for message in reversed(raw)]


def keys(broker: redis.Redis, queue: str = "onceonly") -> list[str]:
    """Which keys the messages in a queue are for."""
    shown = [ast.literal_eval(message["headers"]["kwargsrepr"]) for message in published(broker, queue)]
    return [each["key"] for each in shown]


def claim(db: Database, run: int) -> Claim:
    claimed = db.run(claims.claim, run, "echo", LEASE_S, None)
    assert claimed is not None
    return claimed


def test_a_due_run_is_published_under_its_jobs_name(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis
) -> None:
    run = enqueue("k")
    relay_of().tick()
    (message,) = published(broker)
    headers = message["headers"]
    assert (headers["task"], headers["eta"], headers["expires"]) == ("echo", None, None)
    assert headers["ignore_result"] is True
    assert headers["kwargsrepr"] == "{'key': 'k', 'tenant': 't', 'agent': 'a'}"
    assert message["properties"]["delivery_mode"] == 2
    _args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert kwargs == {"run": run, "tenant": "t", "key": "k", "agent": "a", "v": 1}
    assert "secret" not in json.dumps(message)


def test_a_run_goes_out_when_it_is_due(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis, clock: Clock
) -> None:
    enqueue("later", delay_s=100)
    relay = relay_of()
    relay.tick()
    assert keys(broker) == []
    clock.advance(101)
    relay.tick()
    assert keys(broker) == ["later"]


def test_an_unclaimed_run_is_published_again_less_and_less_often(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis, clock: Clock, db: Database
) -> None:
    def now() -> datetime:
        with db.engine.connect() as connection:
            at: datetime = connection.exec_driver_sql("SELECT onceonly_now()").scalar_one()
            return at

    enqueue("k")
    relay = relay_of(publish_grace_s=2)
    since = now()
    for number, pause_s in ((1, 0), (2, 2), (3, 4), (4, 8), (5, 16)):
        ticks, before = 0, now()
        relay.tick()
        while len(keys(broker)) < number:
            clock.advance(1)
            ticks, before = ticks + 1, now()
            relay.tick()
        assert ticks <= pause_s, "not later"
        assert now() - since >= timedelta(seconds=pause_s), "not earlier"
        since = before


def test_a_full_queue_gets_no_more_and_others_do(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis
) -> None:
    for number in range(5):
        enqueue(f"a{number}", queue="a")
    relay = relay_of(broker_backlog=3, relay_batch=2)
    relay.tick()
    assert len(keys(broker, "a")) == 4  # up to a batch above the limit
    enqueue("b", queue="b")
    relay.tick()
    assert (len(keys(broker, "a")), keys(broker, "b")) == (4, ["b"])
    broker.delete("onceonly:a")
    relay.tick()
    assert keys(broker, "a") == ["a4"]


def test_a_wiped_broker_gets_everything_due_again(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis
) -> None:
    relay = relay_of(publish_grace_s=60)
    for number in range(3):
        enqueue(f"k{number}")
    relay.tick()
    relay.tick()
    assert len(keys(broker)) == 3
    broker.flushall()
    relay.tick()
    assert sorted(keys(broker)) == ["k0", "k1", "k2"]


def test_a_dead_workers_run_is_published_at_once(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis, clock: Clock, db: Database
) -> None:
    run = enqueue("k")
    claim(db, run)
    relay = relay_of()
    relay.tick()
    assert keys(broker) == []
    clock.advance(LEASE_S + 1)
    relay.tick()
    assert keys(broker) == ["k"]


def test_a_dead_workers_last_attempt_wakes_the_waiters(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis, clock: Clock, db: Database
) -> None:
    claim(db, enqueue("k", max_attempts=1))
    clock.advance(LEASE_S + 1)
    with broker.pubsub(ignore_subscribe_messages=True) as waiter:
        waiter.subscribe(CHANNEL)
        waiter.get_message(timeout=5)
        relay_of().tick()
        message = waiter.get_message(timeout=5)
    assert message is not None
    assert decode(message["data"]) == ("t", "k")
    assert keys(broker) == []


def test_many_relays_publish_each_run_once(relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis) -> None:
    for number in range(200):
        enqueue(f"k{number}")
    relays = [relay_of(relay_batch=10, publish_grace_s=60) for _ in range(4)]
    relays[0]._check_epoch()
    next_relay = iter(relays)
    storm(4, lambda: next(next_relay).tick())
    assert sorted(keys(broker)) == sorted(f"k{number}" for number in range(200))


def test_a_backlog_is_published_in_the_order_in_which_it_became_due(
    relay_of: RelayOf, enqueue: Enqueue, broker: redis.Redis, clock: Clock
) -> None:
    for number in range(5):
        enqueue(f"k{number}")
        clock.advance(1)
    relay_of().tick()
    assert keys(broker) == [f"k{number}" for number in range(5)]


def test_a_broker_that_is_down_stops_neither_reaping_nor_the_relay(
    relay_of: RelayOf, enqueue: Enqueue, db: Database, clock: Clock, unused_tcp_port_url: str
) -> None:
    """And what is due is not marked as published."""
    claim(db, enqueue("k"))
    clock.advance(LEASE_S + 1)
    relay = relay_of(broker_url=unused_tcp_port_url, redis_url=None)
    assert 0 < relay.tick() < relay.tick()
    with db.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT state, publications FROM runs").all()
    assert tuple(row) == ("queued", 0)


def test_a_database_that_is_down_is_waited_for(settings: Settings) -> None:
    gone = Database("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_timeout_s=1)
    publisher = Publisher(settings)
    relay = Relay(settings, gone, publisher, HintSender(settings))
    pauses = [relay.tick() for _ in range(8)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 10
    publisher.close()


def test_a_publisher_says_that_the_broker_is_down(settings: Settings, unused_tcp_port_url: str) -> None:
    publisher = Publisher(settings.model_copy(update={"broker_url": unused_tcp_port_url}))
    with pytest.raises(BrokerError):
        publisher.backlog("q")


@pytest.fixture
def unused_tcp_port_url() -> str:
    """A broker that is not there."""
    return "redis://127.0.0.1:1/0"


def test_answers_to_monitors_that_were_killed_come_to_an_end(
    relay_of: RelayOf, broker: redis.Redis, settings: Settings
) -> None:
    """A worker answers whoever has asked, in a list that is the asker's to empty. Nobody else would remove it."""
    asked: set[bytes] = set()
    for _ in range(3):
        app = Celery("monitor", set_as_current=False)
        app.conf.update(worker_conf(settings))
        mailbox = app.control.mailbox
        with app.connection_for_write() as asking, app.connection_for_write() as answering:
            queue = mailbox.reply_queue(asking.channel())
            queue.declare()
            mailbox._publish_reply(
                {"worker@host": "pong"},
                queue.exchange.name,
                queue.routing_key,
                "1",
                channel=answering.channel(),
            )
        asked.add(f"onceonly:{queue.name}".encode())
    endless = {key for key in asked if broker.ttl(key) == -1}
    assert len(endless) == 3, "what this is about"
    relay_of().tick()
    assert all(0 < int(broker.ttl(key)) <= KEPT_S for key in endless)
