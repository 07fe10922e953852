"""Runs and their claims as a small specification: who may do what in which state, and what must never happen.

One key; three workers, two relays, a requester, a broker, clocks. Each step is one atomic statement of ours or one
thing that happens to us, so that every order of the steps is every interleaving. A slow worker is one that takes no
step for long, and a frozen one that thaws is the same: a lease may expire in any state. Messages carry a row and
nothing else, so a count of them is a broker that delivers in any order.

Left out: time limits, policies, calls that can't be repeated, and errors of the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from model.search import LIVELY, Step

T = TypeVar("T")

ZOMBIE, LAST = -1, 100
"""Which grant a claim is of that is over, and the last grant that was made."""

OPEN = ("queued", "in_progress")
FINAL = ("completed", "failed", "cancelled")


class Row(NamedTuple):
    """The run under the key."""

    taking: int
    state: str
    token: int
    grant: int = 0
    """Which grant the worker's lease id is of; 0 without one."""
    live: bool = False
    """The worker's lease has not expired."""
    failures: int = 0
    crashes: int = 0
    marked: bool = False
    """To be published again only later."""
    retained: bool = True


class Worker(NamedTuple):
    doing: str = "idle"
    """idle, popped a message, asking again for a claim, running, succeeded, erred, or stopping."""
    token: int = 0
    grant: int = 0
    live: bool = False
    """What an observer with the true clock knows: its lease lasts, and nobody but its requester has ended it."""


class World(NamedTuple):
    row: Row | None
    workers: tuple[Worker, ...]
    relays: tuple[int, ...]
    """Publications that each relay has marked, and not yet sent."""
    publishing: bool
    """The API has committed a taking and not yet sent its message."""
    messages: int
    sequence: int
    takings: int
    acknowledged: int
    """The last taking that its requester was told of."""
    grants: int
    granted: int
    """The largest token ever granted."""
    accepted: int
    """Results stored of the present taking."""
    faults: int
    """How many may yet happen."""


@dataclass(frozen=True)
class Bounds:
    workers: int = 3
    relays: int = 2
    messages: int = 2
    takings: int = 2
    faults: int = 1
    max_attempts: int = 2
    max_crashes: int = 2


AT_MOST_ONE = "at most one result is accepted per taking"
BY_THE_HOLDER = "a result is accepted for the current claim alone"
GROWING = "the fencing token grows with each grant"
EXCLUSIVE = "one claim at a time is good"
UNDISTURBED = "a claim is good until its lease expires, or its requester cancels"
DURABLE = "an acknowledged run stays until it has ended"

GUARDS = {
    "take: the key is free": DURABLE,
    "take: a cancelled run has let go": UNDISTURBED,
    "claim: the run is queued": EXCLUSIVE,
    "complete: fencing": BY_THE_HOLDER,
    "complete: expiry": BY_THE_HOLDER,
    "complete: state": BY_THE_HOLDER,
    "reap: expiry": UNDISTURBED,
    "reap: at all": LIVELY,
    "publish: again": LIVELY,
    "delete: finished": DURABLE,
    "delete: a cancelled run has let go": UNDISTURBED,
    "token: sequence": GROWING,
}
"""What a mutation may leave out, and the promise that breaks then."""


class Spec:
    """The steps, less the guard that `without` names."""

    def __init__(self, bounds: Bounds, without: str | None = None) -> None:
        assert without is None or without in GUARDS
        self.bounds = bounds
        self.without = without

    @property
    def start(self) -> World:
        return World(
            row=None,
            workers=(Worker(),) * self.bounds.workers,
            relays=(0,) * self.bounds.relays,
            publishing=False,
            messages=0,
            sequence=0,
            takings=0,
            acknowledged=0,
            grants=0,
            granted=0,
            accepted=0,
            faults=self.bounds.faults,
        )

    def steps(self, world: World) -> Iterator[Step[World]]:
        yield from self._requester(world)
        yield from self._relays(world)
        yield from self._broker(world)
        yield from self._time(world)
        for worker in sorted(set(world.workers)):
            yield from self._worker(world, worker)

    def _guards(self, name: str) -> bool:
        return name != self.without

    # The requester

    def _requester(self, world: World) -> Iterator[Step[World]]:
        row = world.row
        if world.takings < self.bounds.takings and self._free(row):
            taking = world.takings + 1
            token = 0 if row is None else row.token
            taken = world._replace(
                row=Row(taking, "queued", token), takings=taking, accepted=0, publishing=True
            )
            yield Step("the requester takes the key", taken, row is None and taking == 1)
        if world.publishing:
            told = world._replace(publishing=False, acknowledged=world.takings)
            if told.messages < self.bounds.messages:
                yield Step("the API publishes and answers", told._replace(messages=told.messages + 1), True)
            if world.faults:
                yield Step("the API dies after its commit", told._replace(faults=told.faults - 1), False)
        if row is not None and row.state in OPEN:
            cancelled = row._replace(state="cancelled")
            yield Step("the requester cancels", world._replace(row=cancelled), False)

    def _free(self, row: Row | None) -> bool:
        if row is None or not self._guards("take: the key is free"):
            return True
        if row.state == "cancelled":
            return not row.live or not self._guards("take: a cancelled run has let go")
        return row.state in FINAL and not row.retained

    # The relays: each takes what is due, commits, and only then sends it

    def _relays(self, world: World) -> Iterator[Step[World]]:
        row = world.row
        for relay in sorted(set(world.relays)):
            if relay:
                yield from self._relay_sends(world, relay)
            elif row is not None and row.state == "queued" and not row.marked:
                marked = world._replace(row=row._replace(marked=True), relays=_swap(world.relays, relay, 1))
                yield Step("a relay marks the run as published", marked, True)
        yield from self._reaping(world)

    def _relay_sends(self, world: World, relay: int) -> Iterator[Step[World]]:
        sent = world._replace(relays=_swap(world.relays, relay, 0))
        if world.messages < self.bounds.messages:
            yield Step("a relay sends its message", sent._replace(messages=sent.messages + 1), True)
        else:
            yield Step("a relay finds the queue full", sent, True)
        if world.faults:
            yield Step("a relay dies before it sends", sent._replace(faults=sent.faults - 1), False)

    def _reaping(self, world: World) -> Iterator[Step[World]]:
        row = world.row
        if row is None or row.state != "in_progress" or not self._guards("reap: at all"):
            return
        if not row.live or not self._guards("reap: expiry"):
            yield Step("a relay reaps the claim", world._replace(row=self._crashed(row)), True)

    def _crashed(self, row: Row) -> Row:
        if row.crashes + 1 < self.bounds.max_crashes:
            return row._replace(state="queued", live=False, crashes=row.crashes + 1, marked=False)
        return row._replace(state="failed", live=False)

    # The broker

    def _broker(self, world: World) -> Iterator[Step[World]]:
        if not world.messages:
            return
        if Worker() in world.workers:
            popped = _swap(world.workers, Worker(), Worker("popped"))
            yield Step(
                "a worker pops a message", world._replace(workers=popped, messages=world.messages - 1), True
            )
        if world.faults:
            failing = world._replace(faults=world.faults - 1)
            yield Step("the broker loses what it holds", failing._replace(messages=0), False)
            if world.messages < self.bounds.messages:
                twice = failing._replace(messages=world.messages + 1)
                yield Step("the broker duplicates a message", twice, False)

    # Time

    def _time(self, world: World) -> Iterator[Step[World]]:
        row = world.row
        if row is None:
            return
        if row.live:
            workers = tuple(
                worker._replace(live=False) if worker.grant == row.grant else worker
                for worker in world.workers
            )
            expired = world._replace(row=row._replace(live=False), workers=_sorted(workers))
            yield Step("the lease expires", expired, True)
        if row.state == "queued" and row.marked and self._guards("publish: again"):
            yield Step("the publication's grace passes", world._replace(row=row._replace(marked=False)), True)
        if row.state in FINAL and row.retained:
            yield Step("the retention time passes", world._replace(row=row._replace(retained=False)), False)
        if self._deletable(row):
            # Messages of a deleted row claim nothing: they are gone with it.
            yield Step("the run is deleted", world._replace(row=None, messages=0), False)

    def _deletable(self, row: Row) -> bool:
        if row.state in OPEN:
            return not self._guards("delete: finished")
        return not row.retained and not (row.live and self._guards("delete: a cancelled run has let go"))

    # The workers

    def _worker(self, world: World, worker: Worker) -> Iterator[Step[World]]:
        match worker.doing:
            case "popped" | "asking":
                yield from self._claim(world, worker)
            case "running":
                yield self._goes_on(
                    world, worker, worker._replace(doing="succeeded"), "has its handler's result", True
                )
                yield self._goes_on(
                    world, worker, worker._replace(doing="erred"), "sees its handler fail", False
                )
                if world.faults:
                    stopping = worker._replace(doing="stopping")
                    failing = world._replace(faults=world.faults - 1)
                    yield self._goes_on(failing, worker, stopping, "is told to stop", False)
            case "succeeded" | "erred" | "stopping":
                yield from self._record(world, worker)
            case _:
                return
        if world.faults:
            failing = world._replace(faults=world.faults - 1)
            yield self._goes_on(failing, worker, Worker(), "dies", False)

    def _goes_on(self, world: World, before: Worker, after: Worker, what: str, fair: bool) -> Step[World]:
        return Step(
            f"{_who(world, before)} {what}", world._replace(workers=_swap(world.workers, before, after)), fair
        )

    def _claim(self, world: World, worker: Worker) -> Iterator[Step[World]]:
        row = world.row
        if (
            row is not None
            and worker.grant
            and (row.grant, row.state, row.live)
            == (
                worker.grant,
                "in_progress",
                True,
            )
        ):
            yield self._goes_on(world, worker, worker._replace(doing="running"), "finds its claim", True)
            return
        claimable = row is not None and (
            row.state == "queued" or not self._guards("claim: the run is queued")
        )
        if row is None or not claimable:
            yield self._goes_on(world, worker, Worker(), "has nothing to claim", True)
            return
        token, grant = self._next_token(world, row), world.grants + 1
        claimed = world._replace(
            row=row._replace(state="in_progress", token=token, grant=grant, live=True, marked=False),
            sequence=world.sequence + 1,
            grants=grant,
            granted=max(world.granted, token),
        )
        holder = Worker("running", token, grant, live=True)
        yield self._goes_on(claimed, worker, holder, "claims the run", True)
        if world.faults:
            unheard = claimed._replace(faults=world.faults - 1)
            asking = holder._replace(doing="asking")
            yield self._goes_on(unheard, worker, asking, "claims the run, unheard", False)

    def _next_token(self, world: World, row: Row) -> int:
        if self._guards("token: sequence"):
            return max(row.token + 1, world.sequence + 1)
        return row.token + 1

    def _record(self, world: World, worker: Worker) -> Iterator[Step[World]]:
        row = world.row
        wanted = {"succeeded": "complete", "erred": "fail", "stopping": "hand back"}[worker.doing]
        if row is None or not self._current(row, worker):
            yield self._goes_on(self._released(world, worker), worker, Worker(), f"may not {wanted}", True)
            return
        recorded = world._replace(row=self._outcome(row, worker.doing))
        if worker.doing == "succeeded":
            recorded = recorded._replace(accepted=recorded.accepted + 1)
        yield self._goes_on(recorded, worker, Worker(), f"{wanted}s", True)
        if world.faults:
            unheard = recorded._replace(faults=world.faults - 1)
            again = worker._replace(live=False)
            yield self._goes_on(unheard, worker, again, f"{wanted}s, unheard", False)

    def _current(self, row: Row, worker: Worker) -> bool:
        fenced = (row.token, row.grant) == (worker.token, worker.grant)
        if worker.doing != "succeeded":
            return fenced and row.live and row.state == "in_progress"
        return (
            (fenced or not self._guards("complete: fencing"))
            and (row.live or not self._guards("complete: expiry"))
            and (row.state == "in_progress" or not self._guards("complete: state"))
        )

    def _released(self, world: World, worker: Worker) -> World:
        row = world.row
        if row is None or (row.state, row.token, row.grant) != ("cancelled", worker.token, worker.grant):
            return world
        return world._replace(row=row._replace(live=False))

    def _outcome(self, row: Row, doing: str) -> Row:
        ended = row._replace(live=False, marked=False)
        if doing == "succeeded":
            return ended._replace(state="completed")
        if doing == "stopping":
            return ended._replace(state="queued")
        if row.failures + 1 < self.bounds.max_attempts:
            return ended._replace(state="queued", failures=row.failures + 1)
        return ended._replace(state="failed", failures=row.failures + 1)


def broken(before: World, step: Step[World]) -> str | None:
    """Which promise the step breaks. Says nothing of how the steps are guarded."""
    after = step.after
    if after.accepted > 1:
        return AT_MOST_ONE
    if after.grants > before.grants and after.granted <= before.granted:
        return GROWING
    if (
        after.accepted > before.accepted
        and after.takings == before.takings
        and not _by_its_holder(before, step)
    ):
        return BY_THE_HOLDER
    holders = [worker for worker in after.workers if worker.live]
    if len(holders) > 1:
        return EXCLUSIVE
    if holders and _taken_away(after, holders[0]):
        return UNDISTURBED
    lost = after.row is None and before.row is not None and before.row.state in OPEN
    replaced = after.takings > before.takings and before.row is not None and before.row.state in OPEN
    if (lost or replaced) and before.takings == before.acknowledged:
        return DURABLE
    return None


def _by_its_holder(before: World, step: Step[World]) -> bool:
    row = before.row
    if row is None or row.state != "in_progress" or not row.live:
        return False
    gone = [
        worker for worker in before.workers if before.workers.count(worker) > step.after.workers.count(worker)
    ]
    return [worker.grant for worker in gone] == [row.grant] and gone[0].live


def _taken_away(world: World, holder: Worker) -> bool:
    row = world.row
    return row is None or row.grant != holder.grant or row.state not in ("in_progress", "cancelled")


def ended(world: World) -> bool:
    """The requester's run has ended."""
    return world.acknowledged > 0 and (world.row is None or world.row.state in FINAL)


def same(world: World) -> World:
    """One world for all that go on alike.

    Who has a claim that is over is a zombie, whichever it was, since no grant comes twice; and of tokens it only
    matters which is larger, so the last one is always the same.
    """
    if not world.grants:
        return world._replace(workers=_sorted(world.workers))
    row, past = world.row, world.grants - LAST
    current = 0 if row is None else row.grant
    workers = tuple(
        worker
        if not worker.grant
        else worker._replace(token=worker.token - past, grant=worker.grant - past)
        if worker.live or worker.grant == current
        else worker._replace(token=0, grant=ZOMBIE)
        for worker in world.workers
    )
    if row is not None:
        row = row._replace(token=row.token - past, grant=row.grant - past if row.grant else 0)
    return world._replace(
        row=row,
        workers=_sorted(workers),
        sequence=world.sequence - past,
        grants=LAST,
        granted=world.granted - past,
    )


def _who(world: World, worker: Worker) -> str:
    if not worker.grant:
        return "a worker"
    return "the holder" if world.row is not None and world.row.grant == worker.grant else "a zombie"


def _sorted(workers: tuple[Worker, ...]) -> tuple[Worker, ...]:
    """Workers differ by what they do and not by who they are: of all their orders one is enough."""
    return tuple(sorted(workers))


def _swap(many: tuple[T, ...], before: T, after: T) -> tuple[T, ...]:
    kept = list(many)
    kept.remove(before)
    return tuple(sorted([*kept, after]))  # type: ignore[type-var]
