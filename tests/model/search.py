"""Explicit-state search, breadth first: every reachable state once, and the shortest way to a broken one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LIVELY = "every accepted run can still end"
"""The promise that no single step breaks."""

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """What may happen next."""

    name: str
    after: S
    fair: bool
    """It happens sooner or later if it may go on happening; a fault, or somebody's whim, does not."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A broken promise, and the shortest history that leads to it."""

    promise: str
    trace: list[str]

    def __str__(self) -> str:
        lines = [f"{number:3}. {name}" for number, name in enumerate(self.trace, 1)]
        return "\n".join([f"broken: {self.promise}", *lines])


@dataclass(slots=True)
class Searched:
    states: int = 0
    steps: int = 0
    broken: Counterexample | None = None


@dataclass(slots=True)
class _Graph(Generic[S]):
    """Every state by number, how it was first reached, and who leads to it by a fair step."""

    states: list[S] = field(default_factory=list)
    reached: list[tuple[int, str]] = field(default_factory=list)
    fair_before: list[list[int]] = field(default_factory=list)

    def add(self, state: S, before: int, name: str) -> int:
        self.states.append(state)
        self.reached.append((before, name))
        self.fair_before.append([])
        return len(self.states) - 1

    def trace(self, number: int) -> list[str]:
        names = []
        while number:
            number, name = self.reached[number]
            names.append(name)
        return names[::-1]


def search(
    start: S,
    steps: Callable[[S], Iterable[Step[S]]],
    broken: Callable[[S, Step[S]], str | None],
    goal: Callable[[S], bool],
    same: Callable[[S], S],
) -> Searched:
    """Take every step from every state that can be reached from `start`.

    broken: which promise a step breaks, if any; the search ends at the first. goal: what must stay reachable from
    every state by fair steps alone. same: one state for all that go on alike. Their number must be finite.
    """
    graph: _Graph[S] = _Graph()
    start = same(start)
    numbers = {start: graph.add(start, 0, "")}
    done = Searched()
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        here = numbers[state]
        for step in steps(state):
            done.steps += 1
            promise = broken(state, step)
            if promise is not None:
                done.states = len(numbers)
                done.broken = Counterexample(promise, [*graph.trace(here), step.name])
                return done
            after = same(step.after)
            there = numbers.get(after)
            if there is None:
                there = numbers[after] = graph.add(after, here, step.name)
                waiting.append(after)
            if step.fair:
                graph.fair_before[there].append(here)
    done.states = len(numbers)
    done.broken = _stuck(graph, goal)
    return done


def _stuck(graph: _Graph[S], goal: Callable[[S], bool]) -> Counterexample | None:
    """The first state from which fair steps never lead to the goal."""
    good = [goal(state) for state in graph.states]
    waiting = deque(number for number, is_good in enumerate(good) if is_good)
    while waiting:
        for before in graph.fair_before[waiting.popleft()]:
            if not good[before]:
                good[before] = True
                waiting.append(before)
    if all(good):
        return None
    return Counterexample(LIVELY, graph.trace(good.index(False)))
