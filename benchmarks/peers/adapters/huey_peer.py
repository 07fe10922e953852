"""huey on Redis, with its defaults: a job is off the queue before it begins."""

import os

from huey import RedisHuey
from witness import say

huey = RedisHuey("peer", url=os.environ["BENCH_REDIS_URL"])


@huey.task()
def job(number: int) -> None:
    say(number)


def send(number: int) -> None:
    job(number)
