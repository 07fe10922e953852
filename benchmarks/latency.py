"""How long a job waits on an idle system, and how long its caller waits for its result."""

from __future__ import annotations

from benchmarks.figures import Case, percentile_ms
from benchmarks.peers.driver import Driver
from benchmarks.witness import Witness

PAUSE_S = 0.01
LIMIT_S = 60.0


def to_start(driver: Driver, witness: Witness, first: int, count: int) -> Case:
    """From the call, and from its answer, until the handler starts; each by itself. The first tenth is not counted."""
    witness.forget()
    times = driver.ask("spaced", name="send", first=first, count=count, pause=PAUSE_S)["times"]
    witness.wait_for(count, LIMIT_S)
    ran_at = witness.ran_at()
    skipped = count // 10
    called = sorted((ran_at[first + n] - times[n][0]) / 1e9 for n in range(skipped, count))
    answered = sorted((ran_at[first + n] - times[n][1]) / 1e9 for n in range(skipped, count))
    return {
        "p50_ms": percentile_ms(called, 0.5),
        "p99_ms": percentile_ms(called, 0.99),
        "after_answer_p50_ms": percentile_ms(answered, 0.5),
        "after_answer_p99_ms": percentile_ms(answered, 0.99),
    }


def to_result(driver: Driver, first: int, count: int) -> Case:
    """From the call until the caller has its result."""
    times = driver.ask("spaced", name="call", first=first, count=count, pause=PAUSE_S)["times"]
    taken = sorted((end - begin) / 1e9 for begin, end in times[count // 10 :])
    return {"p50_ms": percentile_ms(taken, 0.5), "p99_ms": percentile_ms(taken, 0.99)}
