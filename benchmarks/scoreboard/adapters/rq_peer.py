"""rq's worker pool, with its defaults."""

import os

from redis import Redis
from rq import Queue
from witness import work


def job(number: int) -> None:
    work(number)


def enqueue(count: int) -> None:
    queue = Queue(connection=Redis.from_url(os.environ["SCORE_REDIS_URL"]))
    for number in range(count):
        queue.enqueue(job, number)
