"""With Redis away the API accepts as ever; with Postgres away or slow it says so, and soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.broker import Publisher
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.dispatch.relay import Relay
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.local.redis import EmbeddedRedis
from onceonly_jobs.services import account, runs
from onceonly_jobs.store.database import Database, unreachable
from onceonly_jobs.torture.proxy import TcpProxy, Way

if TYPE_CHECKING:
    from tests.integration.conftest import Api

DEADLINE_S = 60


@pytest.fixture
def postgres_line(database_url: str) -> Iterator[TcpProxy]:
    url = sa.make_url(database_url)
    with TcpProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def through(database_url: str, postgres_line: TcpProxy) -> str:
    """This test's database, over the line that can be made bad."""
    url = sa.make_url(database_url).set(host="127.0.0.1", port=postgres_line.port)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def api_of_this_test(serve: Callable[..., Api]) -> Api:
    return serve()


def asked(api: Api, key: str) -> httpx.Response:
    return api.post("/ai/run", key=key)


def back(api: Api, key: str) -> httpx.Response:
    """The first answer that is not 503."""
    deadline = time.monotonic() + DEADLINE_S
    while (answer := asked(api, key)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


def test_a_silent_database_is_given_up_on_and_found_again(
    serve: Callable[..., Api], through: str, postgres_line: TcpProxy
) -> None:
    """Pooled connections whose answers never come, and new ones that are never let in; for 30 callers at once."""
    api = serve(database_url=through, api_statement_timeout_s=0.3, api_pool_timeout_s=0.5)
    assert back(api, "before").status_code == 200
    api.at_once(30, lambda n: back(api, f"connected{n}"))
    postgres_line.blackhole()
    for _ in range(2):
        answers = api.at_once(30, lambda n: asked(api, f"k{n}"))
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
        assert {answer.json()["detail"]["error"] for answer in answers} == {"unavailable"}
    assert api.app.request("GET", "/health").json() == {"ok": True}
    postgres_line.heal()
    assert back(api, "after").status_code == 200
    assert back(api, "before").json()["status"] == "polling"


def test_a_write_whose_answer_got_lost_is_repeated_without_harm(
    api_of_this_test: Api, through: str, postgres_line: TcpProxy
) -> None:
    """It was committed, and its caller was told 503: the repeat attaches to it."""
    api = api_of_this_test
    taking = runs.job_taking(
        api.caller, JobSpec(name="echo", queue="onceonly"), key="k", ttl_s=None, metadata=None
    )

    async def scenario() -> DBAPIError:
        database = Database(through, pool_size=1, statement_timeout_s=1)
        await database.arun(account.authenticate, api.api_key)
        postgres_line.half_open(Way.REPLY)
        with pytest.raises(DBAPIError) as lost:
            await database.arun(runs.take, api.caller, taking)
        postgres_line.heal()
        await database.aclose()
        return lost.value

    assert unreachable(asyncio.run(scenario()))
    deadline = time.monotonic() + DEADLINE_S
    while api.rows("runs") == 0:
        assert time.monotonic() < deadline, "what was sent is carried out"
    assert asked(api, "k").json()["status"] == "polling"
    assert api.rows("runs") == 1


def test_a_statement_that_takes_too_long_is_given_up_on_by_postgres_too(
    serve: Callable[..., Api], db: Database
) -> None:
    """Here it waits for a lock. What others ask for is answered meanwhile, and nobody keeps on waiting for it."""
    api = serve(api_statement_timeout_s=1)
    assert api.post("/check-lock", key="k", ttl=60).status_code == 200
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE locks SET locked_until_at = onceonly_now() WHERE key = 'k'"))
        answers = api.at_once(4, lambda _: api.post("/check-lock", key="k", ttl=60))
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
        assert api.post("/check-lock", key="another", ttl=60).status_code == 200
        assert connection.execute(waiting).scalar_one() == 0
    assert api.post("/check-lock", key="k", ttl=60).json()["status"] == "locked"


def test_with_a_silent_broker_runs_are_accepted_and_published_later(
    serve: Callable[..., Api], settings: Settings, db: Database, redis_url: str
) -> None:
    where = sa.make_url(redis_url)
    with TcpProxy(where.host or "127.0.0.1", where.port or 6379) as line:
        api = serve(broker_url=f"redis://127.0.0.1:{line.port}/0", publish_grace_s=0.01)
        line.blackhole()
        answers = api.at_once(20, lambda n: asked(api, f"k{n}"))
        assert [answer.json()["status"] for answer in answers] == ["acquired"] * 20
        line.heal()
    assert published(settings, db, redis_url, 20)


def test_with_a_full_broker_runs_are_accepted_and_published_when_there_is_room(
    serve: Callable[..., Api], settings: Settings, db: Database, tmp_path: Path
) -> None:
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        api = serve(broker_url=server.url, publish_grace_s=0.01)
        answers = api.at_once(20, lambda n: asked(api, f"k{n}"))
        assert [answer.json()["status"] for answer in answers] == ["acquired"] * 20
        assert admin.llen("onceonly:onceonly") == 0
        admin.config_set("maxmemory", "0")
        assert published(settings, db, server.url, 20)


def test_what_a_full_queue_has_no_room_for_waits_for_nobodys_publication(
    serve: Callable[..., Api], db: Database
) -> None:
    api = serve(broker_backlog=1, publish_grace_s=60)
    waiting = sa.text("SELECT count(*) FROM runs WHERE publish_at <= due_at")
    deadline, count = time.monotonic() + DEADLINE_S, 0
    while not count and time.monotonic() < deadline:
        asked(api, f"k{time.monotonic()}")
        with db.engine.connect() as connection:
            count = connection.execute(waiting).scalar_one()
    assert count


def published(settings: Settings, db: Database, redis_url: str, count: int) -> bool:
    """Whether the relay gets that many different runs out to this broker."""
    there = settings.model_copy(update={"broker_url": redis_url, "publish_grace_s": 0.01})
    publisher = Publisher(there)
    relay = Relay(there, db, publisher, HintSender(there))
    deadline = time.monotonic() + DEADLINE_S
    waiting = sa.text("SELECT count(*) FROM runs WHERE state = 'queued' AND publications = 0")
    with redis.Redis.from_url(redis_url) as broker:
        while True:
            relay.tick()
            with db.engine.connect() as connection:
                left = connection.execute(waiting).scalar_one()
            length: int = broker.llen("onceonly:onceonly")  # type: ignore[assignment]
            if left == 0 and length >= count:
                publisher.close()
                return True
            if time.monotonic() > deadline:
                return False
