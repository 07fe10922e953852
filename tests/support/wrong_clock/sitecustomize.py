"""A wrong time of day, for a process that has this folder on its PYTHONPATH: CLOCK_FILE names how wrong, in seconds.

The file is read at each look at the clock, so a test can let the clock jump. Lengths of time stay right, as they do
where a machine's clock is set. What is implemented in C asks the real clock. (libfaketime would deceive that too, but
it moves Python's monotonic clock without the waits that go by it, so no thread would wake in time.)
"""

import os
import time
from pathlib import Path

_real = time.time
_local, _utc = time.localtime, time.gmtime
_file = Path(os.environ["CLOCK_FILE"])


def _wrong() -> float:
    return _real() + float(_file.read_text())


time.time = _wrong
time.time_ns = lambda: int(_wrong() * 1_000_000_000)
time.localtime = lambda seconds=None: _local(_wrong() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _utc(_wrong() if seconds is None else seconds)
