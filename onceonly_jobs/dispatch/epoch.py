"""Noticing that the broker was wiped: a marker lives beside its messages, and goes when they go."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.celeryconf import KEY_PREFIX, is_redis, redis_py_url
from onceonly_jobs.dispatch.replies import expire_replies

MARKER = f"{KEY_PREFIX}epoch"
TIMEOUT_S = 3.0


class Epoch:
    """The marker of a Redis broker. RabbitMQ's queues are durable and need none."""

    def __init__(self, settings: Settings) -> None:
        url = settings.require_broker_url()
        self._client = (
            redis.Redis.from_url(
                redis_py_url(url),
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
            if is_redis(url)
            else None
        )

    def ended(self) -> bool:
        """Whether the marker is missing. Raises RedisError when the broker can't be asked."""
        return self._client is not None and not self._client.exists(MARKER)

    def begin(self) -> None:
        """Set the marker; only after everything due was made publishable again."""
        if self._client is not None:
            self._client.set(MARKER, "1")

    def tidy(self) -> None:
        """Let answers that nobody takes come to an end. Raises RedisError."""
        if self._client is not None:
            expire_replies(self._client)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
