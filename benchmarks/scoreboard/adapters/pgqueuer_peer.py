"""pgqueuer on Postgres, with its defaults but for two jobs at a time. As a program, its worker."""

import asyncio
import os

import asyncpg
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from witness import work_async

URL = os.environ["SCORE_POSTGRES_URL"]


async def driver() -> AsyncpgDriver:
    return AsyncpgDriver(await asyncpg.connect(URL))


def prepare() -> None:
    async def install() -> None:
        await Queries(await driver()).install()

    asyncio.run(install())


def enqueue(count: int) -> None:
    async def send() -> None:
        payloads = [str(number).encode() for number in range(count)]
        await Queries(await driver()).enqueue(["job"] * count, payloads, [0] * count)

    asyncio.run(send())


async def serve() -> None:
    pgq = PgQueuer(await driver())

    @pgq.entrypoint("job")
    async def job(job: Job) -> None:
        assert job.payload is not None
        await work_async(int(job.payload))

    await pgq.run(batch_size=1, max_concurrent_tasks=2)


if __name__ == "__main__":
    asyncio.run(serve())
