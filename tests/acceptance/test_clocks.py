"""Workers and schedulers whose clocks are hours off, and jump: the database's clock is the one that counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.worker_system import System

from onceonly_jobs.contracts.schedules import ScheduleRequest
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import account, schedules

pytestmark = pytest.mark.timeout(180)

OFF_S = 7200
TESTS = Path(__file__).parents[1]
LONG_S = 3.5
"""Longer than a lease of these tests, so only heartbeats keep it."""


class Clocks:
    """The clocks of two groups of processes, one ahead and one behind, and how a process gets to have one."""

    def __init__(self, directory: Path) -> None:
        self._files = [directory / "clock0", directory / "clock1"]
        self._set(OFF_S, -OFF_S)

    def jump(self) -> None:
        """Let the groups change sides."""
        self._set(-OFF_S, OFF_S)

    def _set(self, *off_s: int) -> None:
        for file, value in zip(self._files, off_s, strict=True):
            part = file.with_suffix(".new")
            part.write_text(str(value))
            part.replace(file)

    def env(self, group: int) -> dict[str, str]:
        path = os.pathsep.join([f"{TESTS}/support/wrong_clock", str(TESTS)])
        return {"CLOCK_FILE": str(self._files[group]), "PYTHONPATH": path}


@contextmanager
def running(parts: System, clocks: Clocks) -> Iterator[None]:
    """A scheduler and a worker of each group."""
    processes = [parts.process("beat", **clocks.env(group)) for group in range(2)]
    processes += [parts.process("worker", "--concurrency", "2", **clocks.env(group)) for group in range(2)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.ready()
        yield
    finally:
        for process in processes:
            process.teardown()


def test_wrong_and_jumping_clocks_change_nothing(parts: System, tmp_path: Path) -> None:
    """A claim lives, a run waits until it is due, each second has its tick: by the database's clock alone."""
    clocks = Clocks(tmp_path)
    parts.db.run(account.ensure_tenant, "t", Plan.AGENCY)
    each_second = ScheduleRequest(name="each", every_s=1, task="looks_at_the_clock", payload={"sleep_s": 0})
    with running(parts, clocks):
        parts.db.run(schedules.create, "k", "t", each_second, parts.settings)
        long = [f"long{n}" for n in range(4)]
        for key in long:
            parts.enqueue("looks_at_the_clock", key, witness=str(parts.witness(key)), sleep_s=LONG_S)
        parts.jobs.enqueue("effect", key="later", payload={}, delay=2)
        parts.until(lambda: all(parts.starts(key) for key in long), "a start of each")
        clocks.jump()
        rows = [parts.finished(key) for key in long]
        later = parts.finished("later")
        ticks = parts.until(lambda: served(parts, 5), "five ticks")

    assert [(row["state"], row["attempt"]) for row in rows] == [("completed", 1)] * 4
    assert [parts.starts(key) for key in long] == [1] * 4
    for row in rows:
        right = row["started_at"].timestamp()
        before, after = (round((at - right) / OFF_S) for at in row["result"]["looked"])
        assert (abs(before), after) == (1, -before), "its clock was wrong, and jumped"
    assert (later["attempt"], later["started_at"] >= later["due_at"]) == (1, True)
    first = ticks[0]["tick_at"]
    assert [tick["tick_at"] - first for tick in ticks] == [timedelta(seconds=n) for n in range(len(ticks))]
    assert {(tick["state"], tick["runs"]) for tick in ticks} == {("fired", 1)}
    wrong = parts.rows("SELECT type FROM run_events WHERE type IN ('lease_expired', 'stale_write_refused')")
    assert wrong == []


def served(parts: System, count: int) -> list[dict[str, Any]] | None:
    """The ticks so far and their runs, once there are so many."""
    ticks = parts.rows(
        "SELECT tick_at, state, (SELECT count(*) FROM runs r WHERE (r.tenant_id, r.key) = (t.tenant_id, t.key)) "
        "AS runs FROM schedule_ticks t ORDER BY tick_at"
    )
    return ticks if len(ticks) >= count else None
