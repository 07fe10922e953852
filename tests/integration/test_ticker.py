"""The ticker: it wakes in time, publishes what it makes, and neither a bad schedule nor a lost database stops it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.schedules import ScheduleRequest
from onceonly_jobs.dispatch.background import BackgroundPublisher
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.services import schedules, ticks
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.testing import Clock
from onceonly_jobs.worker.ticker import LEAST_WAIT_S, LONGEST_WAIT_S, SPREAD_S, Ticker


@pytest.fixture
def publisher(settings: Settings) -> Iterator[BackgroundPublisher]:
    publisher = BackgroundPublisher(settings)
    yield publisher
    publisher.close()


@pytest.fixture
def ticker(settings: Settings, db: Database, publisher: BackgroundPublisher) -> Ticker:
    return Ticker(settings, db, publisher, HintSender(settings))


@pytest.fixture
def make(db: Database, caller: Caller, settings: Settings) -> Any:
    def made(name: str, **fields: Any) -> Any:
        request = ScheduleRequest(name=name, **fields)
        return db.run(schedules.create, "k", caller.tenant_id, request, settings)

    return made


def run_keys(db: Database) -> list[str]:
    with db.engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT key FROM runs ORDER BY key")).scalars())


def test_a_tick_is_published_as_soon_as_it_is_made(
    ticker: Ticker, make: Any, db: Database, clock: Clock, publisher: BackgroundPublisher, redis_url: str
) -> None:
    make("s", every_s=60)
    ticker.tick()
    assert run_keys(db) == []
    clock.advance(60)
    ticker.tick()
    assert len(run_keys(db)) == 1
    publisher.close()  # says when it has published
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen("onceonly:onceonly") == 1


def test_ticks_are_counted_by_what_became_of_them(ticker: Ticker, make: Any, clock: Clock) -> None:
    def shown(name: str, state: str) -> float:
        return metrics.REGISTRY.get_sample_value(name, {"state": state}) or 0.0

    count, delay = "onceonly_schedule_ticks_total", "onceonly_schedule_tick_delay_seconds_sum"
    before = [shown(count, "fired"), shown(count, "misfired"), shown(delay, "misfired")]
    schedule = make("s", every_s=60, misfire_grace_s=0)
    clock.advance((schedule.next_tick_at - schedule.read_at).total_seconds() + 90)
    ticker.tick()
    after = [shown(count, "fired"), shown(count, "misfired"), shown(delay, "misfired")]
    fired, misfired, late_s = (now - then for now, then in zip(after, before, strict=True))
    assert (fired, misfired) == (1, 1)
    assert 90 <= late_s < 150


def test_it_comes_again_when_the_next_tick_is_due(ticker: Ticker, make: Any, clock: Clock) -> None:
    assert LONGEST_WAIT_S <= ticker.tick() <= LONGEST_WAIT_S + SPREAD_S
    schedule = make("s", every_s=3600)
    left_s = (schedule.next_tick_at - schedule.read_at).total_seconds()
    clock.advance(left_s - 60)
    assert ticker.tick() >= LONGEST_WAIT_S
    clock.advance(59.5)
    assert LEAST_WAIT_S <= ticker.tick() <= 0.5 + SPREAD_S


def test_a_schedule_that_can_not_be_served_rests_and_others_go_on(
    ticker: Ticker, make: Any, db: Database, clock: Clock
) -> None:
    make("bad", every_s=60)
    make("good", every_s=60)
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE schedules SET tz = 'Nowhere/Land' WHERE name = 'bad'"))
        connection.execute(
            sa.text("UPDATE schedules SET every_s = NULL, cron = '@hourly' WHERE name = 'bad'")
        )
    clock.advance(60)
    wait_s = ticker.tick()
    assert [key.split(":")[1] for key in run_keys(db)] == ["good"]
    assert wait_s > LONGEST_WAIT_S / 2, "it does not run hot over the bad one"
    clock.advance(60)
    ticker.tick()
    assert [key.split(":")[1] for key in run_keys(db)] == ["good", "good"]
    assert [name.name for name in db.run(ticks.due, 10, [])] == ["bad"]


def test_a_lost_database_is_waited_for(
    settings: Settings, publisher: BackgroundPublisher, make: Any, db: Database, clock: Clock
) -> None:
    make("s", every_s=60)
    clock.advance(60)
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_timeout_s=1)
    ticker = Ticker(settings, away, publisher, HintSender(settings))
    assert 0 < ticker.tick() <= 5
    assert 0 < ticker.tick() <= 5
    ticker._database = db
    ticker.tick()
    assert len(run_keys(db)) == 1
