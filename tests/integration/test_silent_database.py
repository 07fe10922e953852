"""A database behind something that takes what is sent, and has lost the other side: nobody waits for it without end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from support.half_open import HalfOpen, half_open

from onceonly_jobs.services import workers
from onceonly_jobs.store.database import Database, unreachable


@pytest.fixture
def line(database_url: str) -> Iterator[HalfOpen]:
    port = sa.make_url(database_url).port
    assert port is not None
    with half_open(port) as proxy:
        yield proxy


@pytest.fixture
def through(database_url: str, line: HalfOpen) -> Iterator[Database]:
    """The database as it is found through the line."""
    url = sa.make_url(database_url).set(port=line.port).render_as_string(hide_password=False)
    database = Database(url, pool_size=1, silence_s=1)
    yield database
    database.close()


def test_a_connection_that_has_fallen_silent_is_given_up_and_made_anew(
    through: Database, line: HalfOpen
) -> None:
    through.run(workers.forget, "nobody")
    line.silence()
    with pytest.raises(DBAPIError) as raised:
        through.run(workers.forget, "nobody")
    assert unreachable(raised.value)
    through.run(workers.forget, "nobody")


def test_a_question_that_changes_nothing_is_asked_again(through: Database, line: HalfOpen) -> None:
    assert through.run(workers.listed) == []
    line.silence()
    assert through.run(workers.listed) == []
