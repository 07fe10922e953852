"""saq on Redis, told to look for dead jobs often: a heartbeat of 3 s, five attempts, a sweep each second."""

import asyncio
import os

from saq import Queue
from witness import work_async

queue = Queue.from_url(os.environ["SCORE_REDIS_URL"])


async def job(ctx: object, *, number: int) -> None:
    await work_async(number)


settings = {"queue": queue, "functions": [job], "concurrency": 2, "timers": {"sweep": 1}}


def enqueue(count: int) -> None:
    async def send() -> None:
        await queue.connect()
        for number in range(count):
            await queue.enqueue("job", number=number, heartbeat=3, retries=5, timeout=30)
        await queue.disconnect()

    asyncio.run(send())
