"""Whether memory grows: a part of python -m benchmarks --full [--runs N]

Runs are accepted and executed until there were so many; after each tenth of them the memory of each part is read.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import http, memory
from benchmarks.figures import Measured
from benchmarks.product import Product
from benchmarks.servers import Servers

BATCH = 2000
READINGS = 10


def measure(servers: Servers, runs: int, say: Callable[[str], None]) -> list[Measured]:
    """A reading for each tenth of the runs, as a round of its own."""
    product = Product(servers, "soak")
    try:
        api, worker, scheduler = product.api(), product.worker(), product.scheduler()
        readings: list[Measured] = []
        done, number = 0, 0
        while done < runs:
            _, asked = http.accept(product, api, f"soak{number}", 600, BATCH)
            product.settle(600)
            done, number = done + asked, number + 1
            if done * READINGS >= runs * (len(readings) + 1):
                readings.append(
                    {
                        "soak: API process": memory.of_api(api.part) | {"runs": done},
                        "soak: worker child": memory.of_children(worker) | {"runs": done},
                        "soak: worker's own process": memory.of_worker(worker) | {"runs": done},
                        "soak: scheduler": memory.of_worker(scheduler) | {"runs": done},
                    }
                )
                held = ", ".join(
                    f"{name.partition(': ')[2]} {case['rss_mib']:.0f} MiB"
                    for name, case in readings[-1].items()
                )
                say(f"soak, {done:,} runs: {held}")
        return readings
    finally:
        product.stop()
