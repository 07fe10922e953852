"""dramatiq on Redis, with its defaults: acknowledged after the job."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from witness import say

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS_URL"]))


@dramatiq.actor
def job(number: int) -> None:
    say(number)


def send(number: int) -> None:
    job.send(number)
