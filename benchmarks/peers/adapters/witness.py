"""What every job does: one line to a file that no queue knows of, with its number and the time at which it ran.

One write to a file that is open already, of lines of one length: the same cost for everybody, and the file's size says
how many were done. The clock is one for all processes of a machine.
"""

from __future__ import annotations

import os
import time

LINE = b"%09d %020d\n"
_open: dict[int, int] = {}


def say(number: int) -> None:
    pid = os.getpid()
    if pid not in _open:
        _open[pid] = os.open(os.environ["BENCH_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_open[pid], LINE % (number, time.monotonic_ns()))
