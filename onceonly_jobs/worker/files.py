"""Files by which whoever started a process sees how it does: one says that it serves, another that it is alive."""

from __future__ import annotations

import os
from pathlib import Path

READY_FILE = "ONCEONLY_READY_FILE"
"""Made once, when the process begins to serve."""
ALIVE_FILE = "ONCEONLY_ALIVE_FILE"
"""Touched every few seconds. Removed, or older than a minute: the process should be started again."""


def touch(variable: str) -> None:
    """Touch the file that an environment variable names, if it does."""
    path = os.environ.get(variable)
    if path:
        Path(path).touch()


def remove(variable: str) -> None:
    """Remove the file that an environment variable names."""
    path = os.environ.get(variable)
    if path:
        Path(path).unlink(missing_ok=True)
