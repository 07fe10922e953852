"""What one question costs: processor time of those who work at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import psutil

from benchmarks.figures import Case
from benchmarks.servers import Servers

Processes = Callable[[], list[psutil.Process]]


def this_process() -> list[psutil.Process]:
    return [psutil.Process()]


def cpu_s(processes: Processes) -> float:
    """How much processor time these have had so far, in seconds; of one that has just ended nothing is known."""
    spent = 0.0
    for process in processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            spent += sum(process.cpu_times()[:2])
    return spent


class Meter:
    """Reads what each part has had from now on. `parts` are by the names of the figures: `python_us`, `postgres_us`."""

    def __init__(self, parts: Mapping[str, Processes]) -> None:
        self._parts = parts
        self._before = {name: cpu_s(processes) for name, processes in parts.items()}

    def each_us(self, count: int) -> Case:
        """In microseconds for each of so many questions."""
        spent = {name: cpu_s(self._parts[name]) - before for name, before in self._before.items()}
        return {name: max(0.0, seconds) / count * 1e6 for name, seconds in spent.items() if count}


def metered(servers: Servers, python: Processes, **others: Processes) -> Meter:
    """Of these processes of Python, and of both servers."""
    return Meter(
        {
            "python_us": python,
            "postgres_us": servers.postgres_processes,
            "redis_us": servers.redis_processes,
            **others,
        }
    )
