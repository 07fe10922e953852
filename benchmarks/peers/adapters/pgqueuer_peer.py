"""pgqueuer on Postgres with asyncpg. BENCH_VARIANT: how many jobs it takes at once. As a program, its worker."""

import asyncio
import os
from typing import Any

import asyncpg
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from witness import say

URL = os.environ["BENCH_POSTGRES_URL"]
_open: list[Any] = []


async def driver() -> AsyncpgDriver:
    return AsyncpgDriver(await asyncpg.connect(URL))


async def prepare() -> None:
    await Queries(await driver()).install()


async def open_up() -> None:
    _open.append(Queries(await driver()))


async def send(number: int) -> None:
    await _open[0].enqueue("job", str(number).encode())


async def serve() -> None:
    pgq = PgQueuer(await driver())

    @pgq.entrypoint("job")
    async def job(job: Job) -> None:
        assert job.payload is not None
        say(int(job.payload))

    await pgq.run(batch_size=int(os.environ["BENCH_VARIANT"]))


if __name__ == "__main__":
    asyncio.run(serve())
