"""SIGTERM and SIGINT, noticed where their receiver looks for them."""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Whether this process was told to end. A second signal of the same kind ends it at once.

    The handler neither raises nor takes a lock: an exception comes up wherever the main thread is just then, and is
    lost in a destructor or a callback of the garbage collector; a lock, as in an Event, may be held by that thread.
    """

    def __init__(self) -> None:
        self._came = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def listen(self) -> None:
        """Replace the handlers that there are, unless this thread is one that gets no signals."""
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._came = True
        os.write(self._writer, b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Whether a signal has come; waits for one, up to so many seconds."""
        select.select([self._reader], [], [], max(0.0, timeout_s))
        return self._came
