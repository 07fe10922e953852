"""DBOS on Postgres: a queue without limits of its own, which is its fastest. As a program, its worker."""

import os
import threading
from typing import Any

from witness import say

URL = os.environ["BENCH_POSTGRES_URL"]
NAME, QUEUE = "bench", "jobs"
_open: list[Any] = []


def prepare() -> None:
    from dbos import run_dbos_database_migrations

    run_dbos_database_migrations(URL)


def serve() -> None:
    from dbos import DBOS

    DBOS(config={"name": NAME, "system_database_url": URL, "run_admin_server": False, "log_level": "WARNING"})

    @DBOS.workflow(name="job")
    def job(number: int) -> bool:
        say(number)
        return True

    DBOS.launch()
    DBOS.register_queue(QUEUE)
    threading.Event().wait()


def _client() -> Any:
    from dbos import DBOSClient

    if not _open:
        _open.append(DBOSClient(system_database_url=URL))
    return _open[0]


def send(number: int) -> None:
    _client().enqueue({"workflow_name": "job", "queue_name": QUEUE}, number)


def call(number: int) -> None:
    _client().enqueue({"workflow_name": "job", "queue_name": QUEUE}, number).get_result()


if __name__ == "__main__":
    serve()
