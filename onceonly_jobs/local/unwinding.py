"""SIGTERM and SIGHUP as Ctrl-C is: for what has started a system, which would outlive it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


def _exit(number: int) -> object:
    sys.exit(128 + number)


@contextmanager
def unwound_by_signals(end: Callable[[int], object] = _exit) -> Iterator[None]:
    """The first signal raises what `end` does, which the blocks inside are left by. The same one again ends at once.

    That exception comes up wherever the main thread is just then: it may be lost in a destructor, which a command of
    some minutes can live with, as the next signal ends it. Who ignores a signal, or handles it, goes on doing so.
    """
    came = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        signal.signal(number, signal.SIG_DFL)
        if not came:  # SIGHUP often follows SIGTERM, and must not break into the unwinding
            came = True
            end(number)

    here = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    ours = [number for number in NUMBERS if here and signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
