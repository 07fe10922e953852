"""Other processes: who they are, beyond a number that is used again, and how to end a whole family."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Identity:
    """A process id together with when that process began: no other process ever has both."""

    pid: int
    created_at: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Who has this id now, or None where nobody is alive under it."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(pid, process.create_time())
        except psutil.NoSuchProcess:
            return None

    def is_alive(self) -> bool:
        now = Identity.of(self.pid)
        # The start time is reckoned from the boot time, which moves a little when the clock is set.
        return now is not None and abs(now.created_at - self.created_at) < 1


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants that are alive."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group, where it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_tree(pid: int, timeout_s: float = 5) -> None:
    """End a session leader, its group and its descendants now, and wait until all of them are gone.

    PostgreSQL puts each of its processes into a session of its own, so the group alone is not all of them.
    """
    members = family(pid)
    signal_group(pid, signal.SIGKILL)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not all(has_ended(member) for member in members):
        time.sleep(0.01)


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or would be if its parent asked for its exit status."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
