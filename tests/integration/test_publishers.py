"""Publishing straight after a commit: quick where the broker is well, and never in the way where it is not."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Producer

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch import background, broker, celeryconf, direct
from onceonly_jobs.dispatch.background import WAITING, BackgroundPublisher
from onceonly_jobs.dispatch.broker import BrokerError, Publisher
from onceonly_jobs.dispatch.celeryconf import producer_conf
from onceonly_jobs.dispatch.direct import DirectPublisher
from onceonly_jobs.local.redis import EmbeddedRedis
from onceonly_jobs.store.outbox import Due

NOWHERE = "redis://127.0.0.1:1/0"
PATIENCE_S = 60.0


def due(number: int, queue: str = "q") -> Due:
    return Due(
        id=number,
        tenant_id="t",
        key=f"k{number}",
        agent_id=None,
        job="echo",
        queue=queue,
        due_at=datetime.now(UTC),
    )


@pytest.fixture
def broker_settings(redis_url: str) -> Settings:
    return Settings.load(broker_url=redis_url)


@pytest.fixture
def silent_broker() -> Iterator[Settings]:
    """One that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Settings.load(broker_url=f"redis://127.0.0.1:{server.getsockname()[1]}/0")


def length(redis_url: str, queue: str = "q") -> int:
    with redis.Redis.from_url(redis_url) as client:
        count: int = client.llen(f"onceonly:{queue}")  # type: ignore[assignment]
        return count


def wait_for_a_subscriber(redis_url: str, within_s: float = PATIENCE_S) -> None:
    """A consumer of events says that it is ready before it has subscribed: what is sent in between is lost to it."""
    deadline = time.monotonic() + within_s
    with redis.Redis.from_url(redis_url) as client:
        while client.pubsub_numpat() == 0:
            assert time.monotonic() < deadline, "nobody subscribed"
            time.sleep(0.01)


def test_what_is_submitted_is_published(
    broker_settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "CLOSE_S", PATIENCE_S)
    publisher = BackgroundPublisher(broker_settings.model_copy(update={"broker_backlog": 250}))
    for number in range(250):
        publisher.submit(due(number))
    publisher.close()
    assert length(redis_url) == 250


def test_monitors_are_told_of_every_run_that_is_published(broker_settings: Settings, redis_url: str) -> None:
    app, seen = Celery("monitor", set_as_current=False), []
    app.conf.update(producer_conf(broker_settings))

    def see(event: dict[str, Any]) -> None:
        seen.append(event)
        receiver.should_stop = len(seen) == 30

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-sent": see})
        monitor = threading.Thread(
            target=partial(receiver.capture, limit=None, timeout=PATIENCE_S, wakeup=False)
        )
        monitor.start()
        wait_for_a_subscriber(redis_url)
        assert Publisher(broker_settings).publish(due(number) for number in range(30)) == 30
        monitor.join()
    assert [event["name"] for event in seen] == ["echo"] * 30
    assert len({event["uuid"] for event in seen}) == 30
    assert {event["queue"] for event in seen} == {"q"}


def test_submitting_never_waits(silent_broker: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for this broker would do so for longer than the test may take."""
    monkeypatch.setattr(celeryconf, "PRODUCER_TIMEOUT_S", 3600.0)
    publisher = BackgroundPublisher(silent_broker)
    for number in range(WAITING * 2):
        publisher.submit(due(number))
    publisher.close()


def test_a_full_queue_is_left_to_the_relay(
    broker_settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "BACKLOG_FOR_S", 1.0)
    monkeypatch.setattr(direct, "FULL_FOR_S", 3600.0)
    publisher = DirectPublisher(broker_settings.model_copy(update={"broker_backlog": 2}))
    assert not publisher.full("q")
    assert not publisher.offer(due(1), due(2), due(3))
    assert publisher.full("q")
    assert not publisher.offer(due(4), due(5, queue="other"))
    assert (length(redis_url), length(redis_url, "other")) == (2, 1)
    with redis.Redis.from_url(redis_url) as client:
        client.delete("onceonly:q")
    assert publisher.full("q")
    time.sleep(1.0)
    assert publisher.offer(due(6))
    assert not publisher.full("q")
    publisher.close()


def test_a_broker_that_failed_is_left_alone_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "REST_S", 3600.0)
    publisher = DirectPublisher(Settings.load(broker_url=NOWHERE))
    assert not publisher.offer(due(1))
    assert publisher.resting
    assert not publisher.offer(due(2))


def test_a_broker_that_came_back_is_found_at_once(tmp_path: Path) -> None:
    """The connection from before the restart is dead; that is not the broker's fault."""
    with EmbeddedRedis(tmp_path) as server:
        publisher = Publisher(Settings.load(broker_url=server.url))
        assert publisher.publish([due(1)]) == 1
        server.restart()
        assert publisher.publish([due(2)]) == 1
        server.restart()
        assert publisher.backlog("q") == 0
        publisher.close()


def test_a_connection_that_proves_dead_is_replaced(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As RabbitMQ's is after a restart; Redis' client looks for a new one by itself."""
    publisher = Publisher(Settings.load(broker_url=redis_url))
    assert publisher.backlog("q") == 0
    length, asked = broker._queue_length, list[Producer]()

    def dies_first(producer: Producer, name: str) -> int:
        asked.append(producer)
        if len(asked) == 1:
            raise ConnectionResetError
        return length(producer, name)

    monkeypatch.setattr(broker, "_queue_length", dies_first)
    assert publisher.backlog("q") == 0
    assert asked[0] is not asked[1]
    publisher.close()


def test_a_broker_that_is_out_of_memory_says_so(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        publisher = Publisher(Settings.load(broker_url=server.url))
        publisher.publish([due(1)])
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
        with pytest.raises(BrokerError, match="maxmemory"):
            publisher.publish([due(2)])
        publisher.close()


def test_a_silent_broker_is_given_up_on(silent_broker: Settings) -> None:
    with pytest.raises(BrokerError):
        Publisher(silent_broker).publish([due(1)])


def test_a_connection_is_not_shared_with_a_fork(broker_settings: Settings, redis_url: str) -> None:
    publisher = Publisher(broker_settings)
    publisher.publish([due(0)])
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                publisher.publish([due(child * 100 + number) for number in range(50)])
            finally:
                os._exit(0)
        children.append(pid)
    publisher.publish([due(number) for number in range(50)])
    for pid in children:
        os.waitpid(pid, 0)
    assert length(redis_url) == 201
    publisher.close()
