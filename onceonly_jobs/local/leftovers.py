"""What a supervisor that was killed leaves behind, and how the next one ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from onceonly_jobs.local.processes import Identity, family, has_ended, kill_tree

MARK = "ONCEONLY_SUPERVISED_IN"
"""Set to the data directory in the environment of each child, and so of all that a child starts."""


@dataclass(frozen=True, slots=True)
class Record:
    """A running child, as the next supervisor finds it."""

    name: str
    pid: int
    created_at: float
    stop_signal: int
    stage: int

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.created_at)


def _path(data_dir: Path) -> Path:
    return data_dir / "run" / "children.json"


def save(data_dir: Path, records: Iterable[Record]) -> None:
    """Replace the list of running children. It has to survive this process, not the machine: no fsync."""
    path = _path(data_dir)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps([asdict(record) for record in records]))
    temporary.replace(path)


def _load(data_dir: Path) -> list[Record]:
    try:
        return [Record(**entry) for entry in json.loads(_path(data_dir).read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def end_leftovers(data_dir: Path, say: Callable[[str], None], grace_s: float = 8) -> None:
    """End what an earlier supervisor of this directory started: in its order, servers last, then by force."""
    alive = [record for record in _load(data_dir) if record.identity.is_alive()]
    for stage in sorted({record.stage for record in alive}, reverse=True):
        _end_stage([record for record in alive if record.stage == stage], say, grace_s)
    _end_marked(data_dir, say, grace_s)


def _end_stage(records: list[Record], say: Callable[[str], None], grace_s: float) -> None:
    members = []
    for record in records:
        say(f"ending {record.name} (pid {record.pid}), left by an earlier start")
        members += family(record.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, record.stop_signal)
    _wait(members, grace_s)
    for record in records:
        if record.identity.is_alive():
            kill_tree(record.pid)
    _kill(members)


def _end_marked(data_dir: Path, say: Callable[[str], None], grace_s: float) -> None:
    """End what is on no list: started just before the kill, or orphaned when its own parent was killed."""
    members = _marked(data_dir)
    for member in members:
        say(f"ending pid {member.pid}, left by an earlier start")
        with contextlib.suppress(psutil.Error):
            member.send_signal(signal.SIGTERM)
    _wait(members, grace_s)
    _kill(members)


def _marked(data_dir: Path) -> list[psutil.Process]:
    ourselves = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in ourselves and process.environ().get(MARK) == str(data_dir):
                found.append(process)
    return found


def _wait(members: list[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not all(has_ended(member) for member in members):
        time.sleep(0.02)


def _kill(members: list[psutil.Process]) -> None:
    for member in members:
        if not has_ended(member):
            with contextlib.suppress(psutil.Error):
                member.kill()
    _wait(members, 5)
