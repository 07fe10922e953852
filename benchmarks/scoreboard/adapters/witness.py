"""What every peer's job does: it says that it starts, takes its time, and says that it is done.

The lines go to a file that no queue knows of, each in one write.
"""

from __future__ import annotations

import asyncio
import os
import time

SLEEP_S = float(os.environ.get("SCORE_SLEEP_S", "0.2"))


def say(what: str, number: int) -> None:
    line = f"{what} {number} {time.time():.6f}\n".encode()
    file = os.open(os.environ["SCORE_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)
    os.close(file)


def work(number: int) -> None:
    say("start", number)
    time.sleep(SLEEP_S)
    say("done", number)


async def work_async(number: int) -> None:
    say("start", number)
    await asyncio.sleep(SLEEP_S)
    say("done", number)
