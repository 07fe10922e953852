"""How much memory processes hold."""

from __future__ import annotations

import contextlib

import psutil

from benchmarks.figures import Case
from benchmarks.processes import Part

MIB = 1024 * 1024


def held_by(part: Part) -> list[tuple[float, float]]:
    """RSS and PSS of each process in MiB, the first started first. PSS counts shared pages by share."""
    held = []
    for process in part.tree():
        with contextlib.suppress(psutil.Error):
            full = process.memory_full_info()
            held.append((full.rss / MIB, getattr(full, "pss", full.rss) / MIB))
    return held


def of_api(part: Part) -> Case:
    """The largest of its processes: with one there is only one."""
    return _largest(held_by(part))


def of_children(worker: Part) -> Case:
    """The largest child of a worker."""
    return _largest(held_by(worker)[1:])


def of_worker(worker: Part) -> Case:
    """The worker's own process."""
    return _largest(held_by(worker)[:1])


def _largest(held: list[tuple[float, float]]) -> Case:
    return {"rss_mib": max(rss for rss, _ in held), "pss_mib": max(pss for _, pss in held)} if held else {}
