"""What the supervisor is told about a process: how to start it, when it is ready, how to end it."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx


def always() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process to keep running."""

    name: str
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    cwd: Path | None = None
    is_ready: Callable[[], bool] = always
    """Asked from a thread until it says yes, after each start."""
    ready_file: Path | None = None
    """Removed before each start, so `is_ready` cannot see that of the process before."""
    stop_signal: signal.Signals = signal.SIGTERM
    insist_after_s: float | None = None
    insist_signal: signal.Signals = signal.SIGQUIT
    """Sent to a process that goes on for so long after its stop signal."""
    kill_after_s: float = 20
    """How long after its stop signal the process and all that it started are killed."""
    hide: re.Pattern[str] | None = None
    """Lines of output that tell a reader nothing."""


def answers(url: str) -> Callable[[], bool]:
    """A probe: whether GET gives 200. No proxy is asked, for the server is on this machine."""

    def probe() -> bool:
        try:
            with httpx.Client(trust_env=False, timeout=5) as http:
                return http.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    return probe


def exists(path: Path) -> Callable[[], bool]:
    """A probe: whether the process has made this file."""
    return path.exists
