"""News of finished runs over Redis pub/sub. A hint only wakes a waiter; what it then reads is in Postgres."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from onceonly_jobs import metrics
from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.celeryconf import redis_py_url

logger = logging.getLogger(__name__)

CHANNEL = "onceonly:finished"
ANYTHING = ""
"""No key and no timeline has this name."""
TIMEOUT_S = 1.0
MAX_PAUSE_S = 5.0
CANCEL_AGAIN_S = 0.2
PING_S = 10.0
"""Silence after which a subscription is asked whether it still stands."""

_TIMEOUTS: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}


def encode(tenant_id: str, key: str) -> str:
    return json.dumps({"t": tenant_id, "k": key}, separators=(",", ":"))


def decode(data: bytes) -> tuple[str, str] | None:
    """Tenant and key; None for what is no hint of ours."""
    try:
        hint = json.loads(data)
        return str(hint["t"]), str(hint["k"])
    except (ValueError, KeyError, TypeError):
        return None


class HintSender:
    """Sends hints, at best: it never raises, and without Redis it does nothing."""

    def __init__(self, settings: Settings) -> None:
        self._url = None if settings.hints_url is None else redis_py_url(settings.hints_url)
        self._client: redis.Redis | None = None
        self._pid = os.getpid()

    def finished(self, tenant_id: str, key: str) -> None:
        """Wake whoever waits for this key."""
        self.all_finished([(tenant_id, key)])

    def all_finished(self, names: Collection[tuple[str, str]]) -> None:
        """Wake whoever waits for any of these tenants' keys, in one round trip."""
        if self._url is None or not names:
            return
        try:
            with self._connected(self._url).pipeline(transaction=False) as pipeline:
                for tenant_id, key in names:
                    pipeline.publish(CHANNEL, encode(tenant_id, key))
                pipeline.execute()
            metrics.count(metrics.HINTS, "sent", by=len(names))
        except (redis.RedisError, OSError) as error:
            metrics.count(metrics.HINTS, "failed", by=len(names))
            logger.debug("hint not sent: %s", error)

    def moved(self, tenant_id: str, run_id: str) -> None:
        """Wake whoever follows this timeline."""
        self.finished(tenant_id, run_id)

    def _connected(self, url: str) -> redis.Redis:
        if self._client is None or self._pid != os.getpid():
            self._client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1), **_TIMEOUTS)
            self._pid = os.getpid()
        return self._client

    def close(self) -> None:
        if self._client is not None and self._pid == os.getpid():
            self._client.close()
        self._client = None


class HintListener:
    """One subscription that wakes the waiters of this process, and the sending of hints beside it."""

    def __init__(self, settings: Settings) -> None:
        self._url = None if settings.hints_url is None else redis_py_url(settings.hints_url)
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)
        self._client: redis.asyncio.Redis | None = None
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        """Set while the subscription stands."""

    async def start(self) -> None:
        """Subscribe in the background. Without Redis nobody is woken: waiters re-read at their own pace."""
        if self._url is not None and self._task is None:
            self._client = redis.asyncio.Redis.from_url(
                self._url, retry=AsyncRetry(NoBackoff(), 1), **_TIMEOUTS
            )
            self._task = asyncio.create_task(self._listen_for_ever(self._url), name="hints")

    async def aclose(self) -> None:
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # once more where it got lost: a library that is just connecting may swallow it
            await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @asynccontextmanager
    async def waiting(self, tenant_id: str, key: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the key's run finishes, or the timeline of that name has news.

        key may be ANYTHING: of this tenant. Read Postgres after entering, or miss a hint.
        """
        name, event = (tenant_id, key), asyncio.Event()
        self._waiting[name].add(event)
        try:
            yield event
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]

    async def finished(self, tenant_id: str, key: str) -> None:
        """Wake whoever waits for this key, in every process. Never raises."""
        if self._client is None:
            self._wake((tenant_id, key))
            return
        try:
            await self._client.publish(CHANNEL, encode(tenant_id, key))
            metrics.count(metrics.HINTS, "sent")
        except (redis.RedisError, OSError) as error:
            metrics.count(metrics.HINTS, "failed")
            self._wake((tenant_id, key))
            logger.debug("hint not sent: %s", error)

    def moved_here(self, tenant_id: str, run_id: str) -> None:
        """Wake whoever follows this timeline in this process; the others look again soon enough."""
        self._wake((tenant_id, run_id))

    def _wake(self, name: tuple[str, str]) -> None:
        for waited_for in (name, (name[0], ANYTHING)):
            for event in self._waiting.get(waited_for, ()):
                event.set()

    def _wake_all(self) -> None:
        """After a gap in the subscription: any of them may have missed theirs."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def _listen_for_ever(self, url: str) -> None:
        pause_s = 0.1
        while True:
            try:
                await self._listen(url)
            except (redis.RedisError, OSError) as error:
                if self.connected.is_set():
                    metrics.count(metrics.HINTS, "lost")
                    logger.warning("hints are off, waiters re-read at their own pace: %s", error)
                    pause_s = 0.1
            finally:
                self.connected.clear()
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, pause_s * 2)

    async def _listen(self, url: str) -> None:
        # No socket timeout: silence is normal here. An unanswered ping is what tells a dead connection.
        client = redis.asyncio.Redis.from_url(
            url, socket_connect_timeout=TIMEOUT_S, retry=AsyncRetry(NoBackoff(), 0)
        )
        async with client, client.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            pinged = False
            while True:
                message = await subscription.get_message(timeout=PING_S)
                if message is not None:
                    pinged = False
                    self._heard(message)
                elif pinged:
                    raise redis.ConnectionError("the hints' Redis has gone silent")
                else:
                    pinged = True
                    await subscription.ping()

    def _heard(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self.connected.set()
            self._wake_all()
        elif message["type"] == "message" and (name := decode(message["data"])) is not None:
            metrics.count(metrics.HINTS, "received")
            self._wake(name)
