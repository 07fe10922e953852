"""saq on Redis, with its defaults."""

import os

from saq import Queue
from witness import say

queue = Queue.from_url(os.environ["BENCH_REDIS_URL"])


async def job(ctx: object, *, number: int) -> None:
    say(number)


settings = {"queue": queue, "functions": [job], "concurrency": 2}


async def open_up() -> None:
    await queue.connect()


async def send(number: int) -> None:
    await queue.enqueue("job", number=number)


async def close_down() -> None:
    await queue.disconnect()
