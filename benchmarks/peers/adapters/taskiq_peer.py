"""taskiq on a Redis stream, the broker of its own that acknowledges; no results."""

import os

from taskiq_redis import RedisStreamBroker
from witness import say

broker = RedisStreamBroker(os.environ["BENCH_REDIS_URL"])


@broker.task
async def job(number: int) -> None:
    say(number)


async def open_up() -> None:
    await broker.startup()


async def send(number: int) -> None:
    await job.kiq(number)


async def close_down() -> None:
    await broker.shutdown()
