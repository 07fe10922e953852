"""The client: everything the HTTP API offers, sync and async."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import httpx

from onceonly_jobs.client import account, locks, runs
from onceonly_jobs.client.ai import AiClient
from onceonly_jobs.client.blocks import LeaseBlock, LockBlock
from onceonly_jobs.client.dead import DeadClient
from onceonly_jobs.client.governance import GovernanceClient
from onceonly_jobs.client.leases import Lease
from onceonly_jobs.client.models import AiRun, CheckLockResult
from onceonly_jobs.client.payloads import MetadataLike
from onceonly_jobs.client.payloads import metadata as as_metadata
from onceonly_jobs.client.schedules import SchedulesClient
from onceonly_jobs.client.settings import ClientSettings, resolve
from onceonly_jobs.client.transport import Connections, Driver
from onceonly_jobs.client.wire import Flow, Json


class OnceOnly:
    """A client of a OnceOnly server. Share one: between threads, event loops, and over forks.

    api_key, base_url, ttl, agent_id: else ONCEONLY_API_KEY, ONCEONLY_BASE_URL (default: a server on this machine),
    ONCEONLY_TTL, ONCEONLY_AGENT_ID. timeout: seconds for one request. fail_open: let `check_lock` say `locked` when
    the server does not answer. max_retries_429: repeats after 429, 5xx and transport errors (default 3), with full
    jitter up to retry_backoff * 2^n, at most retry_max_backoff, seconds; a `Retry-After` is kept to. By default one
    that is longer than retry_max_backoff is not waited for; if max_retries_429 is given, it is.
    sync_client, async_client: used as they are, with their own base URL and headers where set, and never closed.
    Each method has a twin `..._async`. Raises ConfigError when there is no API key.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 5.0,
        user_agent: str | None = None,
        fail_open: bool = True,
        *,
        max_retries_429: int | None = None,
        retry_backoff: float = 0.5,
        retry_max_backoff: float = 5.0,
        sync_client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
        ttl: int | None = None,
        agent_id: str | None = None,
    ) -> None:
        settings = resolve(
            api_key,
            base_url,
            timeout,
            user_agent,
            fail_open,
            max_retries_429=max_retries_429,
            retry_backoff=retry_backoff,
            retry_max_backoff=retry_max_backoff,
            ttl=ttl,
            agent_id=agent_id,
        )
        connections = Connections(
            settings,
            sync_client=sync_client,
            async_client=async_client,
            transport=transport,
            async_transport=async_transport,
        )
        self._set_up(settings, connections)

    def _set_up(self, settings: ClientSettings, connections: Connections) -> None:
        self.settings, self._connections = settings, connections
        self.driver = Driver(settings, connections)
        self._ctx = self.driver.context
        self.ai = AiClient(self.driver)
        self.gov = GovernanceClient(self.driver)
        self.schedules = SchedulesClient(self.driver)
        self.dead = DeadClient(self.driver)

    @property
    def api_key(self) -> str:
        return self.settings.api_key

    @property
    def base_url(self) -> str:
        return self.settings.base_url

    @property
    def timeout(self) -> float:
        return self.settings.timeout

    @property
    def fail_open(self) -> bool:
        return self.settings.fail_open

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {
            "Authorization": f"Bearer {self.settings.api_key}",
            "Content-Type": "application/json",
            "User-Agent": self.settings.user_agent,
        }

    def __repr__(self) -> str:
        return f"OnceOnly(base_url={self.base_url!r}, api_key='...{self.api_key[-4:]}')"

    # Locks

    def check_lock(
        self,
        key: str,
        ttl: int | None = None,
        meta: MetadataLike | None = None,
        request_id: str | None = None,
        *,
        fingerprint: str | None = None,
    ) -> CheckLockResult:
        """Ask whether this is the first call with its key within `ttl` seconds.

        A server that does not answer counts as `locked` where the client fails open (`result.failed_open`).
        fingerprint: hash of the request; the same key with another one raises ApiError (409).
        """
        return self.driver.run(locks.check_lock(self._ctx, key, ttl, meta, request_id, fingerprint))

    async def check_lock_async(
        self,
        key: str,
        ttl: int | None = None,
        meta: MetadataLike | None = None,
        request_id: str | None = None,
        *,
        fingerprint: str | None = None,
    ) -> CheckLockResult:
        return await self.driver.arun(locks.check_lock(self._ctx, key, ttl, meta, request_id, fingerprint))

    def lock(self, key: str, ttl: int | None = None, meta: MetadataLike | None = None) -> LockBlock:
        """`check_lock` as a `with` or `async with` block; it gives a Lock."""
        return LockBlock(self.driver, key, ttl, meta)

    def lease(
        self,
        key: str,
        ttl: int | None = None,
        metadata: MetadataLike | None = None,
        *,
        extend_every: float = 30.0,
        on_lost: Callable[[Lease], object] | None = None,
        error_code: str = "block_error",
    ) -> LeaseBlock:
        """Work under a lease, as a `with` or `async with` block; it gives a Lease, acquired or not."""
        return LeaseBlock(self.driver, key, ttl, metadata, extend_every, on_lost, error_code)

    # Runs, in short

    def ai_run(self, key: str | None = None, **kwargs: Any) -> Any:
        """`ai.run`."""
        return self.ai.run(key, **kwargs)

    async def ai_run_async(self, key: str | None = None, **kwargs: Any) -> Any:
        return await self.ai.run_async(key, **kwargs)

    def ai_run_and_wait(self, key: str | None = None, **kwargs: Any) -> Any:
        """`ai.run_and_wait`."""
        return self.ai.run_and_wait(key, **kwargs)

    async def ai_run_and_wait_async(self, key: str | None = None, **kwargs: Any) -> Any:
        return await self.ai.run_and_wait_async(key, **kwargs)

    def enqueue(
        self,
        job: str,
        *,
        key: str,
        payload: Json | None = None,
        metadata: MetadataLike | None = None,
        ttl: int | None = None,
        fingerprint: str | None = None,
    ) -> AiRun:
        """Ask for a run of this job, with what its handler gets as `ctx.payload`. Then `ai.wait(key)`.

        `Jobs.enqueue` does it without HTTP, and takes a queue and a delay.
        """
        return self.driver.run(self._enqueue(job, key, payload, metadata, ttl, fingerprint))

    async def enqueue_async(
        self,
        job: str,
        *,
        key: str,
        payload: Json | None = None,
        metadata: MetadataLike | None = None,
        ttl: int | None = None,
        fingerprint: str | None = None,
    ) -> AiRun:
        return await self.driver.arun(self._enqueue(job, key, payload, metadata, ttl, fingerprint))

    def _enqueue(
        self,
        job: str,
        key: str,
        payload: Json | None,
        metadata: MetadataLike | None,
        ttl: int | None,
        fingerprint: str | None,
    ) -> Flow[AiRun]:
        carried = {**(as_metadata(metadata) or {}), "task": job}
        if payload is not None:
            carried["payload"] = payload
        return runs.run_by_key(self._ctx, key, ttl, carried, None, fingerprint)

    # Account

    def me(self) -> Json:
        """The plan, and what the key's owner set."""
        return self.driver.run(account.get(self._ctx, "/me"))

    async def me_async(self) -> Json:
        return await self.driver.arun(account.get(self._ctx, "/me"))

    def update_notifications(
        self,
        *,
        email_notifications_enabled: bool | None = None,
        tool_error_notifications_enabled: bool | None = None,
        run_failure_notifications_enabled: bool | None = None,
    ) -> Json:
        """Change what is given. Raises ValueError when that is nothing."""
        return self.driver.run(
            account.update_notifications(
                self._ctx,
                email_notifications_enabled=email_notifications_enabled,
                tool_error_notifications_enabled=tool_error_notifications_enabled,
                run_failure_notifications_enabled=run_failure_notifications_enabled,
            )
        )

    async def update_notifications_async(
        self,
        *,
        email_notifications_enabled: bool | None = None,
        tool_error_notifications_enabled: bool | None = None,
        run_failure_notifications_enabled: bool | None = None,
    ) -> Json:
        return await self.driver.arun(
            account.update_notifications(
                self._ctx,
                email_notifications_enabled=email_notifications_enabled,
                tool_error_notifications_enabled=tool_error_notifications_enabled,
                run_failure_notifications_enabled=run_failure_notifications_enabled,
            )
        )

    def usage(self, kind: str = "make") -> Json:
        """This month's use of check-locks (`make`) or of runs and leases (`ai`)."""
        return self.driver.run(account.get(self._ctx, "/usage", kind=kind))

    async def usage_async(self, kind: str = "make") -> Json:
        return await self.driver.arun(account.get(self._ctx, "/usage", kind=kind))

    def usage_all(self) -> Json:
        return self.driver.run(account.get(self._ctx, "/usage/all"))

    async def usage_all_async(self) -> Json:
        return await self.driver.arun(account.get(self._ctx, "/usage/all"))

    def metrics(self, from_day: str, to_day: str) -> Any:
        """Counters per day, both days included, as YYYY-MM-DD in UTC."""
        return self.driver.run(account.get(self._ctx, "/metrics", from_day=from_day, to_day=to_day))

    async def metrics_async(self, from_day: str, to_day: str) -> Any:
        return await self.driver.arun(account.get(self._ctx, "/metrics", from_day=from_day, to_day=to_day))

    # Events

    def events(self, limit: int = 50, offset: int = 0) -> Any:
        """The recent feed, newest first, under `data`."""
        return self.driver.run(account.get(self._ctx, "/events", limit=int(limit), offset=int(offset)))

    async def events_async(self, limit: int = 50, offset: int = 0) -> Any:
        return await self.driver.arun(account.get(self._ctx, "/events", limit=int(limit), offset=int(offset)))

    def post_event(
        self,
        *,
        run_id: str,
        type: str,
        ts: int | None = None,
        status: str | None = None,
        duration_ms: int | None = None,
        step: str | None = None,
        tool: str | None = None,
        req_id: str | None = None,
        lease_id: str | None = None,
        agent_id: str | None = None,
        message: str | None = None,
        data: Json | None = None,
        **extra: Any,
    ) -> Json:
        """Write an event on a run's timeline. Not repeated unless it was surely not taken: two would be two events."""
        fields = {
            "run_id": run_id,
            "type": type,
            "ts": ts,
            "status": status,
            "duration_ms": duration_ms,
            "step": step,
            "tool": tool,
            "req_id": req_id,
            "lease_id": lease_id,
            "agent_id": agent_id,
            "message": message,
            "data": data,
        }
        return self.driver.run(account.post_event(self._ctx, fields, extra))

    async def post_event_async(
        self,
        *,
        run_id: str,
        type: str,
        ts: int | None = None,
        status: str | None = None,
        duration_ms: int | None = None,
        step: str | None = None,
        tool: str | None = None,
        req_id: str | None = None,
        lease_id: str | None = None,
        agent_id: str | None = None,
        message: str | None = None,
        data: Json | None = None,
        **extra: Any,
    ) -> Json:
        fields = {
            "run_id": run_id,
            "type": type,
            "ts": ts,
            "status": status,
            "duration_ms": duration_ms,
            "step": step,
            "tool": tool,
            "req_id": req_id,
            "lease_id": lease_id,
            "agent_id": agent_id,
            "message": message,
            "data": data,
        }
        return await self.driver.arun(account.post_event(self._ctx, fields, extra))

    def get_run_timeline(self, run_id: str, *, limit: int = 200, offset: int = 0) -> Json:
        """A run's events, oldest first."""
        return self.driver.run(account.get_run_timeline(self._ctx, run_id, limit, offset))

    async def get_run_timeline_async(self, run_id: str, *, limit: int = 200, offset: int = 0) -> Json:
        return await self.driver.arun(account.get_run_timeline(self._ctx, run_id, limit, offset))

    def runs(self, *, limit: int = 50, offset: int = 0, q: str | None = None) -> Json:
        """The latest timelines; q: whose run id begins so."""
        return self.driver.run(account.get(self._ctx, "/runs", limit=limit, offset=offset, q=q))

    async def runs_async(self, *, limit: int = 50, offset: int = 0, q: str | None = None) -> Json:
        return await self.driver.arun(account.get(self._ctx, "/runs", limit=limit, offset=offset, q=q))

    def ready(self) -> bool:
        """Whether the server answers, and its database too. Never raises for one that does not."""
        return self.driver.run(account.ready(self._ctx))

    async def ready_async(self) -> bool:
        return await self.driver.arun(account.ready(self._ctx))

    # Life

    def close(self) -> None:
        """Close the sync connections. A later call opens new ones."""
        self._connections.close()

    async def aclose(self) -> None:
        """Close this event loop's connections, and the sync ones. A later call opens new ones."""
        await self._connections.aclose()
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Callable[..., OnceOnly], tuple[object, ...]]:
        if not self._connections.own:
            raise TypeError("a client that was given its own httpx client or transport can't be pickled")
        return _restored, (type(self), self.settings)


def _restored(cls: type[OnceOnly], settings: ClientSettings) -> OnceOnly:
    client = cls.__new__(cls)
    client._set_up(settings, Connections(settings))
    return client


def create_client(
    api_key: str | None = None,
    base_url: str | None = None,
    timeout: float = 5.0,
    user_agent: str | None = None,
    fail_open: bool = True,
    *,
    max_retries_429: int | None = None,
    retry_backoff: float = 0.5,
    retry_max_backoff: float = 5.0,
) -> OnceOnly:
    """A client with these settings."""
    return OnceOnly(
        api_key,
        base_url,
        timeout,
        user_agent,
        fail_open,
        max_retries_429=max_retries_429,
        retry_backoff=retry_backoff,
        retry_max_backoff=retry_max_backoff,
    )
