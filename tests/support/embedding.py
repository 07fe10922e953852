"""A program with a worker within it, and then another one. Each serves until the file of its number is there."""

import sys
import threading
import time
from pathlib import Path

from support.worker_app import app


def serve(until: Path) -> None:
    worker = app.Worker(pool="solo", quiet=True)
    thread = threading.Thread(target=worker.start)
    thread.start()
    while not until.exists():
        time.sleep(0.05)
    worker.stop()
    thread.join()


if __name__ == "__main__":
    for number in range(2):
        serve(Path(sys.argv[1], f"over{number}"))
