"""taskiq on Redis. SCORE_VARIANT: `list`, or `stream-N` with an idle timeout of N seconds."""

import asyncio
import os

from taskiq_redis import ListQueueBroker, RedisStreamBroker
from witness import work_async

VARIANT, URL = os.environ["SCORE_VARIANT"], os.environ["SCORE_REDIS_URL"]
if VARIANT == "list":
    broker = ListQueueBroker(URL)
else:
    broker = RedisStreamBroker(URL, idle_timeout=int(VARIANT.removeprefix("stream-")) * 1000)


@broker.task
async def job(number: int) -> None:
    await work_async(number)


def enqueue(count: int) -> None:
    async def send() -> None:
        await broker.startup()
        for number in range(count):
            await job.kiq(number)
        await broker.shutdown()

    asyncio.run(send())
