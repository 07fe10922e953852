"""What a call of the client can raise.

OnceOnlyError                 base of every error of this package
├── ConfigError               no API key, or a setting that can't be used; a setting, not a request
├── UnauthorizedError         401, or a 403 about the key: the API key is missing, unknown or disabled
├── OverLimitError            402: the plan's quota or a limit of the agent's policy
├── RateLimitError            429
├── ValidationError           422: the request itself is wrong
├── ApiError                  any other refusal, and every 5xx
│   ├── LeaseLost             the key belongs to somebody else, or is finished: the caller's work no longer counts
│   ├── StillRunning          a tool call outlasted the patience of its caller; it goes on
│   └── RunFailed             the key's outcome is a failure, where the caller asked for its value
└── Unreachable               no answer at all (an httpx.TransportError too)
    └── TimedOut              no answer in time (an httpx.TimeoutException too)

`str(error)` is the server's message. What to do about it is a note (PEP 678), which tracebacks print below it.
"""

from __future__ import annotations

from typing import Any

import httpx

from onceonly_jobs.errors import ConfigError as ConfigError
from onceonly_jobs.errors import OnceOnlyError as OnceOnlyError

__all__ = [
    "ApiError",
    "ConfigError",
    "LeaseLost",
    "OnceOnlyError",
    "OverLimitError",
    "RateLimitError",
    "RunFailed",
    "StillRunning",
    "TimedOut",
    "UnauthorizedError",
    "Unreachable",
    "ValidationError",
]


class _Answered(OnceOnlyError):
    """A refusal that the server sent.

    status_code: of the answer. detail: its `detail` where that is an object, else empty.
    request_id: what the server's log calls the request.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int | None = None,
        detail: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.detail: dict[str, Any] = detail or {}
        self.request_id = request_id

    @property
    def code(self) -> str | None:
        """The machine-readable word for what happened, e.g. `lease_conflict`."""
        code = self.detail.get("error")
        return code if isinstance(code, str) else None


class UnauthorizedError(_Answered):
    """The API key is missing, unknown or disabled."""


class OverLimitError(_Answered):
    """A quota or a budget is used up. The message names the limit; `detail` says how much is used, and until when."""

    def __init__(
        self,
        message: str = "",
        detail: dict[str, Any] | None = None,
        *,
        status_code: int | None = 402,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status_code=status_code, detail=detail, request_id=request_id)


class RateLimitError(_Answered):
    """Too many requests. `retry_after_sec` is when to come back, where the server said it."""

    def __init__(
        self,
        message: str = "",
        retry_after_sec: float | None = None,
        *,
        status_code: int | None = 429,
        detail: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status_code=status_code, detail=detail, request_id=request_id)
        self.retry_after_sec = retry_after_sec


class ValidationError(_Answered):
    """The request can't be understood. `errors` holds what is wrong with it, field by field."""

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int | None = 422,
        detail: dict[str, Any] | None = None,
        request_id: str | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message, status_code=status_code, detail=detail, request_id=request_id)
        self.errors = errors or []


class ApiError(_Answered):
    """Any refusal without a class of its own."""


class LeaseLost(ApiError):
    """The lease no longer allows its holder to finish: it ran out and was taken over, or the key is finished.

    What the holder did meanwhile may have been done by somebody else too. Its result was not stored.
    """


class StillRunning(ApiError):
    """The tool is still at work. The same call again attaches to it; `key` is for `ai.wait`."""

    @property
    def key(self) -> str:
        return str(self.detail.get("key") or "")


class RunFailed(ApiError):
    """The key's stored outcome is a failure; it is kept, and not tried again. `error_code` is what was stored."""

    @property
    def error_code(self) -> str | None:
        code = self.detail.get("error_code")
        return None if code is None else str(code)


class Unreachable(OnceOnlyError, httpx.TransportError):
    """The server could not be reached, or broke off. Whether it took the request is not known."""

    def __init__(self, message: str = "") -> None:
        httpx.TransportError.__init__(self, message)


class TimedOut(Unreachable, httpx.TimeoutException):
    """The server did not answer in time."""
