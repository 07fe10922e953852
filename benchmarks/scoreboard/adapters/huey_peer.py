"""huey on Redis, with its defaults."""

import os

from huey import RedisHuey
from witness import work

huey = RedisHuey("peer", url=os.environ["SCORE_REDIS_URL"])


@huey.task(retries=3)
def job(number: int) -> None:
    work(number)


def enqueue(count: int) -> None:
    for number in range(count):
        job(number)
