"""Celery on Redis. BENCH_VARIANT: `plain` keeps no results, `postgres` keeps them in Postgres.

As its own guide advises for many short tasks: a high prefetch, no events, no gossip. A message is acknowledged
before its task begins, which is Celery's default and its fastest.
"""

import os

from celery import Celery
from witness import say

KEEPS = os.environ["BENCH_VARIANT"] == "postgres"

app = Celery("peer", broker=os.environ["BENCH_REDIS_URL"])
app.conf.worker_prefetch_multiplier = 64
app.conf.task_ignore_result = not KEEPS
app.conf.broker_connection_retry_on_startup = True
if KEEPS:
    url = os.environ["BENCH_POSTGRES_URL"]
    app.conf.result_backend = url.replace("postgresql://", "db+postgresql+psycopg://")


@app.task
def job(number: int) -> dict[str, bool]:
    say(number)
    return {"ok": True}


def send(number: int) -> None:
    job.delay(number)


def call(number: int) -> None:
    job.delay(number).get(timeout=30)
