"""The supervisor: keeps child processes running, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.children import Child
from onceonly_jobs.local.leftovers import Record, save
from onceonly_jobs.local.output import Output
from onceonly_jobs.local.supervised import Supervised

START_TIMEOUT_S = 120.0


class Stopped(Exception):
    """A signal asked for the end while something was still starting."""


async def _all_ready(stage: list[Supervised]) -> None:
    for child in stage:
        await child.ready.wait()


class Supervisor:
    """Children in stages: each stage starts when the one before is ready, and ends before it.

    async with Supervisor(data_dir, output) as supervisor:
        await supervisor.start(server)
        await supervisor.start(api, worker)
        await supervisor.wait()

    SIGTERM, SIGINT and SIGHUP end `wait`; leaving the block ends the children; a second signal kills them.
    """

    def __init__(self, data_dir: Path, output: Output) -> None:
        self._data_dir = data_dir
        self._output = output
        self._stages: list[list[Supervised]] = []
        self._keeping: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._signals: list[signal.Signals] = []
        (data_dir / "run").mkdir(mode=0o700, exist_ok=True)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup, and meant to be
            self._signals.append(signal.SIGHUP)
        for number in self._signals:
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await self._end_all()
        loop = asyncio.get_running_loop()
        for number in (*self._signals, signal.SIGCHLD):
            loop.remove_signal_handler(number)

    async def start(self, *children: Child, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start children together, after all earlier ones; returns when each is ready.

        Raises ConfigError when one cannot start, Stopped when a signal came first.
        """
        number = len(self._stages)
        stage = [Supervised(child, number, self._output, self._save) for child in children]
        self._stages.append(stage)
        self._keeping += [asyncio.create_task(child.keep_running()) for child in stage]
        ready = asyncio.create_task(_all_ready(stage))
        if not await self._first_of(ready, timeout_s):
            late = "; ".join(child.last_said() for child in stage if not child.ready.is_set())
            raise ConfigError(f"not ready after {timeout_s:g} s: {late}")

    async def wait(self) -> None:
        """Return when a signal asks for the end."""
        with contextlib.suppress(Stopped):
            await self._first_of(asyncio.create_task(asyncio.Event().wait()), None)

    async def _first_of(self, event: asyncio.Task[Any], timeout_s: float | None) -> bool:
        """Whether the event came in time. Raises Stopped, or what ended one of the keeping tasks."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            waiting: set[asyncio.Task[Any]] = {event, stop, *self._keeping}
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                raise Stopped
            for task in self._keeping:
                if task.done():
                    await task
            return event.done()
        finally:
            stop.cancel()
            event.cancel()

    async def _end_all(self) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        for stage in reversed(self._stages):
            await asyncio.gather(*(child.stop() for child in stage))

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._output.line("up", f"{number.name}: ending; once more ends at once")
            return
        for child in self._all():
            child.kill()
        self._output.line("up", f"{number.name}: ending at once")

    def _reap(self) -> None:
        for child in self._all():
            child.reap()

    def _all(self) -> list[Supervised]:
        return [child for stage in reversed(self._stages) for child in stage]

    def _save(self) -> None:
        save(
            self._data_dir,
            [
                Record(
                    name=one.child.name,
                    pid=one.identity.pid,
                    created_at=one.identity.created_at,
                    stop_signal=one.child.stop_signal,
                    stage=one.stage,
                )
                for one in self._all()
                if one.identity is not None
            ],
        )
