"""One `up` per data directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onceonly_jobs.errors import ConfigError


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the directory. Raises ConfigError where another process does.

    The kernel gives the lock back when this process ends in any way; Python opens files close-on-exec, so no
    child keeps it.
    """
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"data directory {data_dir}: not writable ({error.strerror})") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(f"already running (pid {holder}) in data directory {data_dir}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
