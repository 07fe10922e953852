"""Requests per API key. Counted in Redis, so that all API processes count together."""

from __future__ import annotations

import logging
import math
import time

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError

from onceonly_jobs.config import Settings
from onceonly_jobs.errors import ConfigError, RateLimited
from onceonly_jobs.store.account import Caller

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 0.5


def parse_rate(text: str, name: str) -> RateLimitItem:
    """A rate like `100/minute`. Raises ConfigError that names where it was set."""
    try:
        return parse(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is not a rate like '100/second' or '1000/minute'") from None


class RateLimiter:
    """Refuses a key's requests above its rate. Without Redis each process counts for itself.

    A Redis that does not answer lets requests through: the limit protects the server's comfort, not the promise.
    """

    def __init__(self, settings: Settings) -> None:
        self._default = (
            None if settings.rate_limit is None else parse_rate(settings.rate_limit, "ONCEONLY_RATE_LIMIT")
        )
        self._own: dict[str, RateLimitItem] = {}
        self._window = MovingWindowRateLimiter(_storage(settings.hints_url))

    async def check(self, caller: Caller) -> None:
        """Count one request. Raises RateLimited with the whole seconds until the next would pass."""
        limit = self._limit(caller.rate_limit)
        if limit is None:
            return
        try:
            if not await self._window.hit(limit, caller.key_id):
                window = await self._window.get_window_stats(limit, caller.key_id)
                raise RateLimited(max(1, math.ceil(window.reset_time - time.time())))
        except (RedisError, OSError) as error:
            logger.warning("rate limit not checked: %s", error)

    def _limit(self, own: str | None) -> RateLimitItem | None:
        if own is None:
            return self._default
        if own not in self._own:
            self._own[own] = parse_rate(own, "rate limit of the API key")
        return self._own[own]


def _storage(url: str | None) -> Storage:
    if url is None:
        return MemoryStorage()
    return RedisStorage(
        f"async+{url}",
        implementation="redispy",
        key_prefix="onceonly:rate",
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
