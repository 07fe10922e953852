"""`with` and `async with` blocks around guarded code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from types import TracebackType

from onceonly_jobs.client import locks
from onceonly_jobs.client.keeping import AsyncKeeper, Keeper
from onceonly_jobs.client.leases import Lease, acquire, beat_every, leave
from onceonly_jobs.client.models import CheckLockResult
from onceonly_jobs.client.payloads import MetadataLike
from onceonly_jobs.client.transport import Driver
from onceonly_jobs.client.wire import Flow


@dataclass(frozen=True, slots=True)
class Lock:
    """A key that this caller was the first to ask for, or not."""

    result: CheckLockResult

    @property
    def key(self) -> str:
        return self.result.key

    @property
    def acquired(self) -> bool:
        """Go on: this caller is the first."""
        return self.result.should_proceed()

    @property
    def duplicate(self) -> bool:
        return self.result.duplicate


class LockBlock:
    """`with client.lock(key) as lock: if lock.acquired: ...`. The lock stays when the block ends, for its ttl."""

    def __init__(self, driver: Driver, key: str, ttl: int | None, meta: MetadataLike | None) -> None:
        self._driver, self._key, self._ttl, self._meta = driver, key, ttl, meta

    def _ask(self) -> Flow[CheckLockResult]:
        return locks.check_lock(self._driver.context, self._key, self._ttl, self._meta, None)

    def __enter__(self) -> Lock:
        return Lock(self._driver.run(self._ask()))

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Lock:
        return Lock(await self._driver.arun(self._ask()))

    async def __aexit__(self, *_: object) -> None: ...


class LeaseBlock:
    """`with client.lease(key) as lease: if lease.acquired: ... lease.set_result(...)`.

    The lease is extended while the block runs. At its end the result is stored; when it raises, its failure.
    """

    def __init__(
        self,
        driver: Driver,
        key: str,
        ttl: int | None,
        metadata: MetadataLike | None,
        extend_every: float,
        on_lost: Callable[[Lease], object] | None,
        error_code: str,
    ) -> None:
        self._driver, self._key, self._ttl, self._metadata = driver, key, ttl, metadata
        self._extend_every, self._on_lost, self._error_code = extend_every, on_lost, error_code
        self._keeping = ExitStack()
        self._async_keeping = AsyncExitStack()

    def _ask(self) -> Flow[Lease]:
        return acquire(self._driver.context, self._key, self._ttl, self._metadata, self._on_lost)

    def _leave(self, error: BaseException | None) -> Flow[None]:
        return leave(self._driver.context, self._lease, error, self._error_code)

    def __enter__(self) -> Lease:
        self._lease = lease = self._driver.run(self._ask())
        if lease.acquired:
            self._keeping.enter_context(
                Keeper(self._driver, lease, beat_every(lease.ttl, self._extend_every))
            )
        return lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeping.close()
        if self._lease.acquired:
            self._driver.run(self._leave(error))

    async def __aenter__(self) -> Lease:
        self._lease = lease = await self._driver.arun(self._ask())
        if lease.acquired:
            keeper = AsyncKeeper(self._driver, lease, beat_every(lease.ttl, self._extend_every))
            await self._async_keeping.enter_async_context(keeper)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._async_keeping.__aexit__(kind, error, trace)
        if self._lease.acquired:
            await self._driver.arun(self._leave(error))
