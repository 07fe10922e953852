"""Celery on Redis. SCORE_VARIANT: `early`, `late`, or `late-N` with a visibility timeout of N seconds."""

import os

from celery import Celery
from witness import work

VARIANT = os.environ["SCORE_VARIANT"]

app = Celery("peer", broker=os.environ["SCORE_REDIS_URL"])
app.conf.task_acks_late = VARIANT.startswith("late")
if VARIANT.startswith("late-"):
    app.conf.broker_transport_options = {"visibility_timeout": int(VARIANT.removeprefix("late-"))}


@app.task
def job(number: int) -> None:
    work(number)


def enqueue(count: int) -> None:
    for number in range(count):
        job.delay(number)
