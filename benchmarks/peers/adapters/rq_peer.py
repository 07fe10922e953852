"""rq, with its defaults."""

import os

from redis import Redis
from rq import Queue
from witness import say

queue = Queue(connection=Redis.from_url(os.environ["BENCH_REDIS_URL"]))


def job(number: int) -> None:
    say(number)


def send(number: int) -> None:
    queue.enqueue(job, number)
