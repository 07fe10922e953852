"""Files by which whoever started a process sees how it does: one says that it serves, another that it is alive."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

READY_FILE = "ONCEONLY_READY_FILE"
"""Made once, when the process begins to serve."""
ALIVE_FILE = "ONCEONLY_ALIVE_FILE"
"""Touched every few seconds. Removed, or older than a minute: the process should be started again."""

_told: set[str] = set()


def touch(variable: str) -> None:
    """Touch the file that an environment variable names, if it does."""
    _try(variable, lambda path: path.touch())


def remove(variable: str) -> None:
    """Remove the file that an environment variable names."""
    _try(variable, lambda path: path.unlink(missing_ok=True))


def _try(variable: str, act: Callable[[Path], None]) -> None:
    """Do it if that is possible: a directory that is gone is no reason to stop working."""
    path = os.environ.get(variable)
    if not path:
        return
    try:
        act(Path(path))
    except OSError as error:
        if path not in _told:
            _told.add(path)
            logger.warning("%s: %s", variable, error)
