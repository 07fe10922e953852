"""procrastinate on Postgres, with its defaults. Jobs are deferred over its synchronous pool."""

import os
from typing import Any

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from witness import say

URL = os.environ["BENCH_POSTGRES_URL"]

app = App(connector=PsycopgConnector(conninfo=URL))
_open: list[Any] = []


@app.task(name="job")
def job(number: int) -> None:
    say(number)


def prepare() -> None:
    with app.replace_connector(SyncPsycopgConnector(conninfo=URL)) as sync, sync.open():
        sync.schema_manager.apply_schema()


def open_up() -> None:
    context = app.replace_connector(SyncPsycopgConnector(conninfo=URL))
    _open.append(context)
    context.__enter__().open()


def send(number: int) -> None:
    job.defer(number=number)


def close_down() -> None:
    app.close()
    _open[0].__exit__(None, None, None)
