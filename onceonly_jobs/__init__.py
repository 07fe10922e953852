"""OnceOnly Jobs: a self-hosted job queue with one effective execution per key.

Names load on first use, so that the client alone installs and imports without the server's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onceonly_jobs.jobs import Enqueued as Enqueued
    from onceonly_jobs.jobs import Jobs as Jobs
    from onceonly_jobs.worker.context import JobContext as JobContext
    from onceonly_jobs.worker.functions import ToolContext as ToolContext
    from onceonly_jobs.worker.jobs import job as job
    from onceonly_jobs.worker.jobs import tool as tool
    from onceonly_jobs.worker.outcomes import Fail as Fail
    from onceonly_jobs.worker.outcomes import Retry as Retry

    __version__: str

_HOMES = {
    "Enqueued": "onceonly_jobs.jobs",
    "Jobs": "onceonly_jobs.jobs",
    "JobContext": "onceonly_jobs.worker.context",
    "ToolContext": "onceonly_jobs.worker.functions",
    "job": "onceonly_jobs.worker.jobs",
    "tool": "onceonly_jobs.worker.jobs",
    "Fail": "onceonly_jobs.worker.outcomes",
    "Retry": "onceonly_jobs.worker.outcomes",
}

__all__ = ["Enqueued", "Fail", "JobContext", "Jobs", "Retry", "ToolContext", "__version__", "job", "tool"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onceonly-jobs")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
