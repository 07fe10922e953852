"""dramatiq on Redis, with its defaults."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from witness import work

dramatiq.set_broker(RedisBroker(url=os.environ["SCORE_REDIS_URL"]))


@dramatiq.actor
def job(number: int) -> None:
    work(number)


def enqueue(count: int) -> None:
    for number in range(count):
        job.send(number)
