"""What a client is set to: by arguments, else by the environment, else by default."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from onceonly_jobs.errors import ConfigError

DEFAULT_BASE_URL = "http://127.0.0.1:8080/v1"
"""Where `onceonly-jobs up` listens."""
DEFAULT_RETRIES = 3


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Everything a client is, but its connections. Durations in seconds."""

    api_key: str = field(repr=False)
    base_url: str
    timeout: float = 5.0
    user_agent: str = ""
    fail_open: bool = True
    retries: int = DEFAULT_RETRIES
    retry_backoff: float = 0.5
    retry_max_backoff: float = 5.0
    longest_retry_after: float = 5.0
    """A server that asks for more patience than this gets none: the error says when to come back."""
    ttl: int | None = None
    agent_id: str | None = None


def resolve(
    api_key: str | None,
    base_url: str | None,
    timeout: float,
    user_agent: str | None,
    fail_open: bool,
    *,
    max_retries_429: int | None,
    retry_backoff: float,
    retry_max_backoff: float,
    ttl: int | None,
    agent_id: str | None,
) -> ClientSettings:
    """Settings from arguments, then from ONCEONLY_API_KEY, _BASE_URL, _TTL and _AGENT_ID. Raises ConfigError."""
    if api_key is None:
        api_key = os.environ.get("ONCEONLY_API_KEY")
        if not api_key:
            raise ConfigError("no API key: pass api_key=, or set ONCEONLY_API_KEY")
    retries = DEFAULT_RETRIES if max_retries_429 is None else int(max_retries_429)
    return ClientSettings(
        api_key=api_key,
        base_url=_base_url(base_url or os.environ.get("ONCEONLY_BASE_URL") or DEFAULT_BASE_URL),
        timeout=float(timeout),
        user_agent=user_agent or f"onceonly-jobs-python/{_version()}",
        fail_open=bool(fail_open),
        retries=max(0, retries),
        retry_backoff=float(retry_backoff),
        retry_max_backoff=float(retry_max_backoff),
        # Who asked for retries on 429 by number wants them, however long the server's pause is.
        longest_retry_after=float(retry_max_backoff) if max_retries_429 is None else math.inf,
        ttl=_ttl(os.environ.get("ONCEONLY_TTL")) if ttl is None else int(ttl),
        agent_id=agent_id or os.environ.get("ONCEONLY_AGENT_ID") or None,
    )


def _base_url(given: str) -> str:
    url = given.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"base_url, or ONCEONLY_BASE_URL, must be like http://host:port/v1, not {given!r}")
    return url if parts.path else f"{url}/v1"


def _ttl(given: str | None) -> int | None:
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"ONCEONLY_TTL must be a whole number of seconds, not {given!r}")
    return int(given)


def _version() -> str:
    try:
        return version("onceonly-jobs")
    except PackageNotFoundError:
        return "unknown"
