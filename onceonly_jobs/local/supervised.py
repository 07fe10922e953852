"""One child of the supervisor: started, watched, started again, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.children import Child
from onceonly_jobs.local.output import Output, Pipe
from onceonly_jobs.local.processes import Identity, kill_tree, signal_group

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0
FAILED_STARTS = 3
CONFIG_ERROR_STATUS = 2


class Supervised:
    """A child and its current process."""

    def __init__(self, child: Child, stage: int, output: Output, changed: Callable[[], None]) -> None:
        self.child = child
        self.stage = stage
        self.identity: Identity | None = None
        self.ready = asyncio.Event()
        self._output = output
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._pipe: Pipe | None = None
        self._last_line = ""
        self._was_ready = False
        self._ready_at: float | None = None

    async def keep_running(self) -> None:
        """Run the child for ever. Raises ConfigError when it cannot even start for the first time."""
        delay_s = FIRST_DELAY_S
        failed_starts = 0
        while True:
            healthy_s = await self._run_once()
            if not self._was_ready:
                failed_starts += 1
                self._check_hopeless(failed_starts)
            if healthy_s >= HEALTHY_AFTER_S:
                delay_s = FIRST_DELAY_S
            self._say(f"{self._how_it_ended()}; starting again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _run_once(self) -> float:
        """Run one process to its end; returns for how many seconds it was ready."""
        if not self._spawn():
            return 0
        self._ready_at = None
        probe = asyncio.create_task(self._probe())
        try:
            await self._ended.wait()
        finally:
            probe.cancel()
            await asyncio.wait([probe])
        self.ready.clear()
        return time.monotonic() - self._ready_at if self._ready_at is not None else 0

    async def _probe(self) -> None:
        interval_s = 0.05
        while not await asyncio.to_thread(self.child.is_ready):
            await asyncio.sleep(interval_s)
            interval_s = min(interval_s * 1.2, 0.5)
        if self._was_ready:
            self._say("is ready again")
        self._was_ready = True
        self._ready_at = time.monotonic()
        self.ready.set()

    def _spawn(self) -> bool:
        child = self.child
        if child.ready_file is not None:
            child.ready_file.unlink(missing_ok=True)
        self._ended = asyncio.Event()
        pipe = self._pipe = Pipe(self._show)
        try:
            self._process = subprocess.Popen(
                child.argv,
                env={**os.environ, **child.env},
                cwd=child.cwd,
                stdin=subprocess.DEVNULL,
                stdout=pipe.writing,
                stderr=pipe.writing,
                start_new_session=True,
            )
        except OSError as error:
            self._process = None
            self._last_line = str(error)
            pipe.close()
            return False
        finally:
            os.close(pipe.writing)
        self.identity = Identity.of(self._process.pid)
        self._changed()
        self.reap()  # it may have ended before the signal handler could know it
        return True

    def _show(self, line: str) -> None:
        if line.strip() and not (self.child.hide is not None and self.child.hide.search(line)):
            self._last_line = line
            self._output.line(self.child.name, line)

    def reap(self) -> None:
        """Note the end of the process, and end what it leaves: a worker's own children work on without it."""
        process = self._process
        if process is None or process.poll() is None or self._ended.is_set():
            return
        signal_group(process.pid, signal.SIGKILL)
        if self._pipe is not None:
            self._pipe.close()
        self.identity = None
        self._changed()
        self._ended.set()

    async def stop(self) -> None:
        """End the process: its stop signal, then what it needs more. Returns when it has ended."""
        child = self.child
        if not self._is_running():
            return
        self._signal(child.stop_signal)
        waited_s = 0.0
        if child.insist_after_s is not None:
            waited_s = child.insist_after_s
            if not await self._ends_within(waited_s):
                self._say(f"still runs after {waited_s:g} s: {child.insist_signal.name}")
                self._signal(child.insist_signal)
        if not await self._ends_within(child.kill_after_s - waited_s):
            self._say(f"still runs after {child.kill_after_s:g} s: killed")
            self.kill()
            await self._ends_within(2)

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        if self._process is not None and self._is_running():
            kill_tree(self._process.pid, timeout_s=1)

    def last_said(self) -> str:
        """Its name, and its last line."""
        return f"{self.child.name}, which said last: {self._last_line or 'nothing'}"

    def _is_running(self) -> bool:
        self.reap()
        return self._process is not None and not self._ended.is_set()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def _ends_within(self, timeout_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        return self._ended.is_set()

    def _check_hopeless(self, failed_starts: int) -> None:
        status = self._process.returncode if self._process is not None else None
        if status == CONFIG_ERROR_STATUS or failed_starts >= FAILED_STARTS:
            words = self._last_line.removeprefix("error: ")
            raise ConfigError(f"{self.child.name} {self._how_it_ended()}: {words}")

    def _how_it_ended(self) -> str:
        if self._process is None:
            return "could not be started"
        status = self._process.returncode
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _say(self, text: str) -> None:
        self._output.line("up", f"{self.child.name} {text}")
