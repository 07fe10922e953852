"""Jobs that do nothing, from a full queue to the last result stored: the same way for everybody.

The worker is started and warm, and held still (SIGSTOP) while the queue is filled. The time runs from the moment at
which it may go on until every job has run, as the witness shows, and, where the queue stores how jobs ended, until all
are stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import psutil

from benchmarks.cpu import metered
from benchmarks.figures import Case
from benchmarks.processes import Part, wait_until
from benchmarks.servers import Servers
from benchmarks.witness import Witness

PATIENCE_S = 180.0


def consume(
    servers: Servers,
    workers: Sequence[Part],
    witness: Witness,
    numbers: range,
    unfinished: Callable[[], int] | None,
) -> Case:
    """Let the workers go on, until all of these jobs are done. Raises RuntimeError unless each ran exactly once."""
    psutil.cpu_percent()
    meter = metered(servers, lambda: [process for worker in workers for process in worker.tree()])
    started = time.monotonic_ns()
    for worker in workers:
        worker.resume()
    witness.wait_for(len(numbers), PATIENCE_S)
    if unfinished is not None:
        wait_until(lambda: unfinished() == 0, PATIENCE_S, "all results are stored")
        ended = time.monotonic_ns()
    costs = meter.each_us(len(numbers))
    busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    times = witness.ran_at()
    if set(times) != set(numbers):
        raise RuntimeError(f"{len(numbers)} jobs were enqueued, and {len(times)} ran")
    if unfinished is None:
        ended = max(times.values())
    seconds = (ended - started) / 1e9
    return {"per_second": len(numbers) / seconds, "jobs": len(numbers), "cores_busy": busy} | costs
