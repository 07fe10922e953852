"""procrastinate on Postgres, with its defaults."""

import os

from procrastinate import App, PsycopgConnector, RetryStrategy, SyncPsycopgConnector
from witness import work

URL = os.environ["SCORE_POSTGRES_URL"]

app = App(connector=PsycopgConnector(conninfo=URL))


@app.task(name="job", retry=RetryStrategy(max_attempts=5))
def job(number: int) -> None:
    work(number)


def prepare() -> None:
    with app.replace_connector(SyncPsycopgConnector(conninfo=URL)) as sync, sync.open():
        sync.schema_manager.apply_schema()


def enqueue(count: int) -> None:
    with app.replace_connector(SyncPsycopgConnector(conninfo=URL)) as sync, sync.open():
        for number in range(count):
            sync.tasks["job"].defer(number=number)
