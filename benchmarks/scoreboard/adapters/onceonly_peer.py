"""This project, with its defaults: worker lease 15 s, heartbeat every 5 s."""

import time
from contextlib import closing

from witness import work

from onceonly_jobs import JobContext, job
from onceonly_jobs.config import Settings
from onceonly_jobs.errors import UnknownTask
from onceonly_jobs.jobs import Jobs
from onceonly_jobs.worker.app import create_worker


@job("job", max_attempts=3)
def run(ctx: JobContext) -> None:
    work(ctx.payload["number"])


app = create_worker()


def enqueue(count: int) -> None:
    with closing(Jobs(Settings.load(), tenant="peer")) as jobs:
        for number in range(count):
            while True:
                try:
                    jobs.enqueue("job", key=f"peer:{number}", payload={"number": number})
                    break
                except UnknownTask:  # no worker has told of it yet
                    time.sleep(0.2)
