"""What is to be reached at least, and whether it was: each goal against the cases of the same round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.figures import Rounds, Spread
from benchmarks.ours import NAME
from benchmarks.peers.catalogue import PEERS

ENQUEUE_32 = f"enqueue: {NAME}, 32 connections"
END_TO_END = f"end to end: {NAME}"
FLOOR = "http: floor"
DECISION = "service: decision, an agent each"
BARE = "service: the rows of a decision, written bare"
HOT_DECISION = "service: decision, one hot agent"


@dataclass(frozen=True)
class Goal:
    """A figure of ours and its bound: at least, or below."""

    what: str
    figure: Callable[[Rounds], Spread | None]
    bound: float
    below: bool = False
    unit: str = ""
    why: Callable[[Rounds], str] | None = None
    """Where the time goes, for the report on a goal that was not met."""

    def met(self, rounds: Rounds) -> bool | None:
        """Of the median; None where it was not measured."""
        spread = self.figure(rounds)
        if spread is None:
            return None
        return spread.median < self.bound if self.below else spread.median >= self.bound

    @property
    def wanted(self) -> str:
        return f"{'below' if self.below else 'at least'} {self.bound:g}{self.unit}"


def ratio(name: str, base: str, figure: str = "per_second") -> Callable[[Rounds], Spread | None]:
    return lambda rounds: rounds.ratio(name, base, figure)


def figure(name: str, which: str) -> Callable[[Rounds], Spread | None]:
    return lambda rounds: rounds.spread(name, which)


def _ahead_of_all_enqueues(rounds: Rounds) -> Spread | None:
    """The ratio to the fastest of the peers in each round."""
    names = [f"enqueue: {peer.label}" for peer in PEERS]
    ratios = []
    for measured in rounds.rounds:
        peers = [measured[name]["per_second"] for name in names if name in measured]
        if peers and ENQUEUE_32 in measured:
            ratios.append(measured[ENQUEUE_32]["per_second"] / max(peers))
    return Spread.of(ratios)


PARTS = {"python_us": "Python", "postgres_us": "PostgreSQL", "redis_us": "Redis", "load_us": "whoever asks"}


def costs(rounds: Rounds, case: str) -> str:
    """The processor time of one of a case, by part, as words."""
    spreads = {label: rounds.spread(case, name) for name, label in PARTS.items()}
    known = [f"{spread.median:.0f} µs of {label}" for label, spread in spreads.items() if spread]
    return ", ".join(known) or "an unknown time"


def _total_us(rounds: Rounds, case: str, parts: Iterable[str] = PARTS) -> float:
    spreads = [rounds.spread(case, name) for name in parts]
    return sum(spread.median for spread in spreads if spread)


def _why_enqueues(rounds: Rounds) -> str:
    rates = [(rounds.spread(f"enqueue: {peer.label}"), peer) for peer in PEERS]
    _, fastest, durable_too = max((rate.median, peer.label, peer.durable) for rate, peer in rates if rate)
    kept = "has the job on disk as well" if durable_too else "keeps the job in Redis, with which it is lost"
    floor = rounds.ratio(FLOOR, f"enqueue: {fastest}")
    beside = f"{floor.median:.2f} of that rate" if floor else "an unknown share of that rate"
    durable = _total_us(rounds, RUN, ["postgres_us"]) / (_total_us(rounds, f"enqueue: {fastest}") or 1)
    return (
        f"{fastest} is asked within the caller's process ({costs(rounds, f'enqueue: {fastest}')}) and {kept}. "
        "Ours is asked over HTTP and is on disk when it answers. Over HTTP the "
        f"constant endpoint, which keeps nothing, reaches {beside} ({costs(rounds, FLOOR)}): that much HTTP takes by "
        f"itself. A run that is accepted takes {costs(rounds, RUN)}; PostgreSQL has the run, its decision, its "
        f"timeline and its feed on disk by then, and that alone is {durable:.2f} of what {fastest} takes in all."
    )


def _why_decisions(rounds: Rounds) -> str:
    return (
        f"A check-lock over HTTP writes one row and takes {costs(rounds, LOCK)}; a decision takes "
        f"{costs(rounds, DECISION)}. The rows that it leaves behind (run, decision, timeline and its event, feed, the "
        f"agent's windows), with their sixteen entries in indexes, take {costs(rounds, BARE)} when they are written "
        "bare, without policy, limits or idempotency."
    )


def _why_end_to_end(peer: str) -> Callable[[Rounds], str]:
    return lambda rounds: (
        f"A run of ours takes {costs(rounds, END_TO_END)}, a job of {peer} {costs(rounds, f'end to end: {peer}')}. "
        f"{peer} runs jobs within the process that fetches them, and of a job that has ended it keeps a line in its "
        "log. Ours are claimed under a fenced lease, run in processes that can be killed, and end with result, "
        "outcome, events and feed stored."
    )


def _scaled(what: str) -> Callable[[Rounds], Spread | None]:
    """The lowest throughput of any size beside that of the smallest, in each round."""

    def lowest(rounds: Rounds) -> Spread | None:
        ratios = []
        for measured in rounds.rounds:
            by_size = [
                case["per_second"] for name, case in measured.items() if name.startswith(f"scale: {what}, ")
            ]
            sizes = [_size(name) for name in measured if name.startswith(f"scale: {what}, ")]
            if len(sizes) > 1:
                ratios.append(min(by_size) / by_size[sizes.index(min(sizes))])
        return Spread.of(ratios)

    return lowest


def _size(name: str) -> int:
    """Of a case like `scale: ai/run, 1,000 stored`."""
    return int(name.partition(", ")[2].removesuffix(" stored").replace(",", ""))


def _slowest(what: str) -> Callable[[Rounds], Spread | None]:
    """The longest p99 of any size, in each round."""

    def longest(rounds: Rounds) -> Spread | None:
        found = [
            [case["p99_ms"] for name, case in measured.items() if name.startswith(f"scale: {what}, ")]
            for measured in rounds.rounds
        ]
        return Spread.of([max(times) for times in found if times])

    return longest


def _growth(part: str) -> Callable[[Rounds], Spread | None]:
    """The last reading of the soak beside the first, which is taken after a tenth of the runs."""

    def grown(rounds: Rounds) -> Spread | None:
        readings = rounds.values(f"soak: {part}", "rss_mib")
        return Spread.of([readings[-1] / readings[0]]) if len(readings) > 1 else None

    return grown


def _peer(name: str) -> str:
    return next(peer.label for peer in PEERS if peer.name == name)


def _against(name: str, bound: float) -> Goal:
    label = _peer(name)
    return Goal(f"end to end, beside {label}", ratio(END_TO_END, f"end to end: {label}"), bound)


LOCK, DUPLICATE, RUN = (
    "http: check-lock, new keys",
    "http: check-lock, duplicates",
    "http: ai/run, accepted",
)

GOALS = (
    Goal("check-lock, new keys, beside the constant endpoint", ratio(LOCK, FLOOR), 0.9),
    Goal("its p99 beside that of the constant endpoint", ratio(LOCK, FLOOR, "p99_ms"), 4, below=True),
    Goal("check-lock, duplicates, beside the constant endpoint", ratio(DUPLICATE, FLOOR), 0.9),
    Goal("ai/run accepted, beside the constant endpoint", ratio(RUN, FLOOR), 0.5),
    Goal(
        "ai/run from 32 connections, beside the fastest peer's enqueue per call",
        _ahead_of_all_enqueues,
        1.0,
        why=_why_enqueues,
    ),
    _against("celery", 0.7),
    _against("celery-postgres", 1.5),
    _against("procrastinate", 1.0),
    _against("dbos", 1.0),
    Goal(
        "accepted to handler start, p50",
        figure(f"to start: {NAME}", "after_answer_p50_ms"),
        10,
        below=True,
        unit=" ms",
    ),
    Goal(
        "accepted to handler start, p99",
        figure(f"to start: {NAME}", "after_answer_p99_ms"),
        50,
        below=True,
        unit=" ms",
    ),
    Goal("run_and_wait, p50", figure(f"to result: {NAME}", "p50_ms"), 25, below=True, unit=" ms"),
    Goal(
        "decisions, an agent each, beside check-lock over HTTP",
        ratio(DECISION, LOCK),
        0.6,
        why=_why_decisions,
    ),
    Goal("decisions of one hot agent, beside those of an agent each", ratio(HOT_DECISION, DECISION), 0.5),
    Goal("memory of the API process", figure("memory: API process", "rss_mib"), 150, below=True, unit=" MiB"),
    Goal("memory of a worker child", figure("memory: worker child", "rss_mib"), 120, below=True, unit=" MiB"),
)

FULL = (
    Goal("check-lock, the slowest size beside the smallest", _scaled("check-lock"), 0.85),
    Goal("ai/run, the slowest size beside the smallest", _scaled("ai/run"), 0.85),
    Goal("timeline query, p99, the slowest size", _slowest("timeline"), 50, below=True, unit=" ms"),
    Goal("audit query, p99, the slowest size", _slowest("audit log"), 50, below=True, unit=" ms"),
    Goal(
        "memory of the API process, last reading beside the first", _growth("API process"), 1.05, below=True
    ),
    Goal(
        "memory of a worker child, last reading beside the first", _growth("worker child"), 1.05, below=True
    ),
)
"""Of --full alone."""

REACH = (
    Goal(f"end to end, beside {_peer('celery')}", ratio(END_TO_END, f"end to end: {_peer('celery')}"), 1.0),
    Goal(
        f"end to end, beside {_peer('pgqueuer')}",
        ratio(END_TO_END, f"end to end: {_peer('pgqueuer')}"),
        1.0,
        why=_why_end_to_end(_peer("pgqueuer")),
    ),
)
"""Beyond the goals: named, and told whether it was reached."""
