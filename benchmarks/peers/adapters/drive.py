"""The producer's side of one queue, told what to do by lines of JSON: python drive.py ADAPTER

An adapter has `send(number)`, which returns once the job is accepted, and where it makes sense `call(number)`, which
returns with the job's result; `open_up()` and `close_down()` where it needs them. They may be coroutines: all of a
command happens in one event loop that lives as long as this process.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import sys
import time
from typing import Any

WARM = 20


class Driver:
    """Carries the commands out."""

    def __init__(self, adapter: str) -> None:
        self._adapter = importlib.import_module(adapter)
        self._loop = asyncio.new_event_loop()

    def run(self, name: str, *arguments: Any) -> Any:
        """A function of the adapter; nothing where it has none of that name."""
        function = getattr(self._adapter, name, None)
        if function is None:
            return None
        value = function(*arguments)
        return self._loop.run_until_complete(value) if inspect.isawaitable(value) else value

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, f"do_{command.pop('do')}")(**command)

    def do_open(self) -> dict[str, Any]:
        self.run("open_up")
        return {}

    def do_run(self, name: str) -> dict[str, Any]:
        self.run(name)
        return {}

    def do_close(self) -> dict[str, Any]:
        self.run("close_down")
        return {}

    def do_enqueue(self, first: int, seconds: float, limit: int) -> dict[str, Any]:
        """One job per call, one after the other. The first few are not timed."""
        return self._loop.run_until_complete(self._enqueue(first, seconds, limit))

    async def _enqueue(self, first: int, seconds: float, limit: int) -> dict[str, Any]:
        send, waits = self._adapter.send, inspect.iscoroutinefunction(self._adapter.send)
        done, started = 0, time.perf_counter()
        while done < limit and time.perf_counter() - started < seconds:
            if done == min(WARM, limit // 2):
                started, timed_from = time.perf_counter(), done
            if waits:
                await send(first + done)
            else:
                send(first + done)
            done += 1
        return {"jobs": done, "timed": done - timed_from, "seconds": time.perf_counter() - started}

    def do_spaced(self, name: str, first: int, count: int, pause: float) -> dict[str, Any]:
        """`send` or `call`, with pauses: when each was begun and when it returned, by the monotonic clock."""
        return self._loop.run_until_complete(self._spaced(getattr(self._adapter, name), first, count, pause))

    async def _spaced(self, function: Any, first: int, count: int, pause: float) -> dict[str, Any]:
        waits, times = inspect.iscoroutinefunction(function), []
        for number in range(first, first + count):
            begun = time.monotonic_ns()
            if waits:
                await function(number)
            else:
                function(number)
            times.append((begun, time.monotonic_ns()))
            await asyncio.sleep(pause)
        return {"times": times}


def main() -> None:
    driver = Driver(sys.argv[1])
    gc.disable()
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    for line in sys.stdin:
        print(json.dumps(driver.do(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
