"""A Redis that forgets, in each way in which it can: no run is lost, and none is done twice."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from pytest_celery import CeleryBrokerCluster
from support.process_nodes import Process
from support.worker_system import System

from onceonly_jobs.dispatch.celeryconf import KEY_PREFIX
from onceonly_jobs.dispatch.epoch import MARKER
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import claims

pytestmark = pytest.mark.timeout(180)

QUEUE = f"{KEY_PREFIX}onceonly"
BINDINGS = f"{KEY_PREFIX}_kombu.binding.*"
EVERY_S = 0.2
OTHERS_BYTES = 65_536


@pytest.fixture
def broker(serving: System) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(serving.settings.require_broker_url()) as client:
        yield client


@contextmanager
def emptied_all_the_time(broker: redis.Redis) -> Iterator[list[int]]:
    """Meanwhile, the counts of keys that each FLUSHALL found."""
    found: list[int] = []
    over = threading.Event()

    def nemesis() -> None:
        while not over.wait(EVERY_S):
            found.append(broker.dbsize())
            broker.flushall()

    thread = threading.Thread(target=nemesis)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@contextmanager
def crowded(broker: redis.Redis) -> Iterator[list[int]]:
    """Meanwhile, at which of the other application's writes our marker was found to be gone."""
    gone: list[int] = []
    over = threading.Event()

    def nemesis() -> None:
        for number in itertools.count():
            broker.set(f"other:{number}", b"x" * OTHERS_BYTES)
            if not broker.exists(MARKER):
                gone.append(number)
            if over.wait(0.005):
                return

    memory = broker.info("memory")["used_memory"] + 40 * OTHERS_BYTES
    broker.config_set("maxmemory-policy", "allkeys-random")
    broker.config_set("maxmemory", memory)
    thread = threading.Thread(target=nemesis)
    thread.start()
    try:
        yield gone
    finally:
        over.set()
        thread.join()
        broker.config_set("maxmemory", 0)
        broker.config_set("maxmemory-policy", "noeviction")


def enqueue(system: System, keys: list[str]) -> None:
    for key in keys:
        system.enqueue("effect", key, witness=str(system.witness(key)), sleep_s=0.02)


def each_was_done_once(system: System, keys: list[str]) -> None:
    for key in keys:
        row = system.finished(key)
        assert (row["state"], row["attempt"], system.starts(key)) == ("completed", 1, 1), key


def test_a_redis_that_is_emptied_all_the_time_loses_nothing(serving: System, broker: redis.Redis) -> None:
    """The runs get through while it goes on, not only after it."""
    keys = [f"flushed{n}" for n in range(100)]
    with emptied_all_the_time(broker) as found:
        enqueue(serving, keys)
        each_was_done_once(serving, keys)
    assert len([count for count in found if count]) >= 3, "there was something to lose"


def test_a_redis_that_evicts_loses_nothing(serving: System, broker: redis.Redis) -> None:
    """Another application fills it: any key may go at any write, the queue, the bindings or our marker."""
    keys: list[str] = []
    serving.until(lambda: broker.exists(MARKER), "the marker")
    evicted = broker.info("stats")["evicted_keys"]
    with crowded(broker) as marker_gone:
        while len(marker_gone) < 3 or broker.info("stats")["evicted_keys"] < evicted + 50:
            keys.append(f"evicted{len(keys)}")
            enqueue(serving, keys[-1:])
        each_was_done_once(serving, keys)


def test_without_its_bindings_everything_is_routed(serving: System, broker: redis.Redis) -> None:
    """Losing them does not look like an empty Redis: the marker is still there."""
    serving.until(lambda: broker.exists(MARKER), "the marker")
    for bound in broker.scan_iter(BINDINGS):
        broker.delete(bound)
    assert list(broker.scan_iter(BINDINGS)) == []
    keys = [f"unbound{n}" for n in range(20)]
    enqueue(serving, keys)
    each_was_done_once(serving, keys)


def test_an_older_dump_loses_nothing_and_repeats_nothing(
    parts: System, beat: Process, celery_broker_cluster: CeleryBrokerCluster, tmp_path: Path
) -> None:
    """As after a failover: messages that were done with are back, later ones are gone, and the marker is the same."""
    parts.db.run(claims.announce, [JobSpec(name="effect", queue="onceonly", max_attempts=5)])
    server = celery_broker_cluster[0]
    dump = tmp_path / "redis" / "dump.rdb"
    old, new = [f"old{n}" for n in range(20)], [f"new{n}" for n in range(20)]
    with redis.Redis.from_url(parts.settings.require_broker_url()) as client:
        enqueue(parts, old)
        parts.until(lambda: client.llen(QUEUE) >= len(old) and client.exists(MARKER), "messages for all")
        client.save()
        shutil.copy(dump, tmp_path / "older")
        marker = client.get(MARKER)

        worker = parts.process("worker", "--concurrency", "2")
        worker.start()
        try:
            each_was_done_once(parts, old)
            parts.until(lambda: client.llen(QUEUE) == 0, "every message is taken")
            worker.kill("SIGSTOP")
            enqueue(parts, new)
            parts.until(lambda: client.llen(QUEUE) >= 1, "messages that will be forgotten")

            server.kill()
            shutil.copy(tmp_path / "older", dump)
            server.restart()
            assert (client.get(MARKER), client.llen(QUEUE) >= len(old)) == (marker, True)
            worker.kill("SIGCONT")
            each_was_done_once(parts, [*old, *new])
            parts.until(lambda: client.llen(QUEUE) == 0, "the old messages are taken once more")
            each_was_done_once(parts, [*old, *new])
        finally:
            worker.teardown()
