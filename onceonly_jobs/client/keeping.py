"""Keeping a lease while the caller's code runs: a thread beside it, or a task."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import Token
from typing import TYPE_CHECKING

from onceonly_jobs.client.leases import Lease, beats, current, failing_beats

if TYPE_CHECKING:
    from onceonly_jobs.client.transport import Driver


class _Stopped(Exception):
    """The block is over."""


class Keeper:
    """Extends the lease from a thread for the length of a `with` block."""

    def __init__(self, driver: Driver, lease: Lease, every: float) -> None:
        self._driver, self._lease, self._every = driver, lease, every
        self._stop = threading.Event()

    def __enter__(self) -> None:
        self._lease.working = True
        self._token = current.set(self._lease)
        threading.Thread(target=self._beat, name="onceonly-heartbeat", daemon=True).start()

    def _beat(self) -> None:
        with failing_beats(self._lease), suppress(_Stopped):
            self._driver.run(beats(self._driver.context, self._lease, self._every), self._sleep)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def __exit__(self, *_: object) -> None:
        # Not joined: an extend that is on its way changes nothing any more, and may take its time-out to say so.
        self._lease.working = False
        self._stop.set()
        _reset(self._token)


class AsyncKeeper:
    """Extends the lease from a task for the length of an `async with` block.

    When the lease is lost the block is cancelled, and that cancellation becomes LeaseLost at its end.
    """

    def __init__(self, driver: Driver, lease: Lease, every: float) -> None:
        self._driver, self._lease, self._every = driver, lease, every
        self._cancelled = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._task, self._before = task, task.cancelling()
        self._lease.working = True
        self._token = current.set(self._lease)
        self._beating = asyncio.create_task(self._beat(), name="onceonly-heartbeat")

    async def _beat(self) -> None:
        with failing_beats(self._lease):
            await self._driver.arun(beats(self._driver.context, self._lease, self._every))
        if self._lease.working:
            self._cancelled = True
            self._task.cancel(f"the lease on {self._lease.key!r} is lost")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self._lease.working = False
        _reset(self._token)
        self._beating.cancel()
        ours = self._cancelled and isinstance(error, asyncio.CancelledError)
        try:
            # Also takes in a cancellation that came too late for the block.
            await asyncio.wait([self._beating])
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
        if self._cancelled and self._task.uncancel() > self._before:
            raise asyncio.CancelledError  # somebody else cancels as well
        if ours:
            self._lease.check()


def _reset(token: Token[Lease | None]) -> None:
    with suppress(ValueError):  # a block that is left in another context than it was entered in
        current.reset(token)
