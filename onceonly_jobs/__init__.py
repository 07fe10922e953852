"""OnceOnly Jobs: a self-hosted job queue with one effective execution per key.

Names load on first use, so that the client alone installs and imports without the server's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onceonly_jobs.client import Lease as Lease
    from onceonly_jobs.client import Lock as Lock
    from onceonly_jobs.client import OnceOnly as OnceOnly
    from onceonly_jobs.client import create_client as create_client
    from onceonly_jobs.client import current_lease as current_lease
    from onceonly_jobs.client.decorators import idempotent as idempotent
    from onceonly_jobs.client.decorators import idempotent_ai as idempotent_ai
    from onceonly_jobs.client.exceptions import ApiError as ApiError
    from onceonly_jobs.client.exceptions import LeaseLost as LeaseLost
    from onceonly_jobs.client.exceptions import OnceOnlyError as OnceOnlyError
    from onceonly_jobs.client.exceptions import OverLimitError as OverLimitError
    from onceonly_jobs.client.exceptions import RateLimitError as RateLimitError
    from onceonly_jobs.client.exceptions import UnauthorizedError as UnauthorizedError
    from onceonly_jobs.client.exceptions import ValidationError as ValidationError
    from onceonly_jobs.client.models import AgentLogItem as AgentLogItem
    from onceonly_jobs.client.models import AgentMetrics as AgentMetrics
    from onceonly_jobs.client.models import AgentStatus as AgentStatus
    from onceonly_jobs.client.models import AiResult as AiResult
    from onceonly_jobs.client.models import AiRun as AiRun
    from onceonly_jobs.client.models import AiStatus as AiStatus
    from onceonly_jobs.client.models import AiToolResult as AiToolResult
    from onceonly_jobs.client.models import CheckLockResult as CheckLockResult
    from onceonly_jobs.client.models import Policy as Policy
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
    "OnceOnly": "onceonly_jobs.client",
    "create_client": "onceonly_jobs.client",
    "Lease": "onceonly_jobs.client",
    "Lock": "onceonly_jobs.client",
    "current_lease": "onceonly_jobs.client",
    "CheckLockResult": "onceonly_jobs.client.models",
    "Policy": "onceonly_jobs.client.models",
    "AgentStatus": "onceonly_jobs.client.models",
    "AgentLogItem": "onceonly_jobs.client.models",
    "AgentMetrics": "onceonly_jobs.client.models",
    "idempotent": "onceonly_jobs.client.decorators",
    "idempotent_ai": "onceonly_jobs.client.decorators",
    "AiToolResult": "onceonly_jobs.client.models",
    "AiResult": "onceonly_jobs.client.models",
    "AiRun": "onceonly_jobs.client.models",
    "AiStatus": "onceonly_jobs.client.models",
    "OnceOnlyError": "onceonly_jobs.client.exceptions",
    "UnauthorizedError": "onceonly_jobs.client.exceptions",
    "OverLimitError": "onceonly_jobs.client.exceptions",
    "RateLimitError": "onceonly_jobs.client.exceptions",
    "ValidationError": "onceonly_jobs.client.exceptions",
    "ApiError": "onceonly_jobs.client.exceptions",
    "LeaseLost": "onceonly_jobs.client.exceptions",
    "Enqueued": "onceonly_jobs.jobs",
    "Jobs": "onceonly_jobs.jobs",
    "JobContext": "onceonly_jobs.worker.context",
    "ToolContext": "onceonly_jobs.worker.functions",
    "job": "onceonly_jobs.worker.jobs",
    "tool": "onceonly_jobs.worker.jobs",
    "Fail": "onceonly_jobs.worker.outcomes",
    "Retry": "onceonly_jobs.worker.outcomes",
}

_MODULES = {"ai", "ai_models", "client", "decorators", "exceptions", "governance", "models", "version"}
"""Modules of the client, found as attributes where the published SDK has them."""

__all__ = [
    "AgentLogItem",
    "AgentMetrics",
    "AgentStatus",
    "AiResult",
    "AiRun",
    "AiStatus",
    "AiToolResult",
    "ApiError",
    "CheckLockResult",
    "Enqueued",
    "Fail",
    "JobContext",
    "Jobs",
    "Lease",
    "LeaseLost",
    "Lock",
    "OnceOnly",
    "OnceOnlyError",
    "OverLimitError",
    "Policy",
    "RateLimitError",
    "Retry",
    "ToolContext",
    "UnauthorizedError",
    "ValidationError",
    "__version__",
    "create_client",
    "current_lease",
    "idempotent",
    "idempotent_ai",
    "job",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onceonly-jobs")
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
