"""The specification of runs and claims, searched whole; and what each of its guards is for."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import pytest
from model.search import LIVELY, Searched, search
from model.spec import GUARDS, Bounds, Spec, broken, ended, same

SMALL = Bounds(workers=2, relays=1, messages=1)
SMALL_ONCE = replace(SMALL, takings=1)
QUICK = {"one taking": Bounds(takings=1, messages=1), "a key used twice": SMALL}
WIDE = {
    "a key used twice": Bounds(),
    "two faults": Bounds(takings=1, faults=2),
    "retries": Bounds(workers=2, takings=1, faults=2, max_attempts=3, max_crashes=3),
}
BOUNDS = WIDE if os.environ.get("ONCEONLY_TEST_MODEL") == "wide" else QUICK

pytestmark = pytest.mark.timeout(3600 if BOUNDS is WIDE else 120)


def searched(bounds: Bounds, without: str | None = None) -> Searched:
    spec = Spec(bounds, without)
    gc.disable()  # there are no cycles, and looking for some takes as long as the search
    try:
        return search(spec.start, spec.steps, broken, ended, same)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", BOUNDS)
def test_no_order_of_steps_breaks_a_promise(name: str) -> None:
    done = searched(BOUNDS[name])
    print(f"{BOUNDS[name]}: {done.states:,} states, {done.steps:,} steps")
    assert done.broken is None, str(done.broken)


@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_the_search_finds_what_it_is_for(guard: str) -> None:
    """A search that finds nothing proves nothing, unless it finds what is there."""
    done = searched(SMALL_ONCE if GUARDS[guard] == LIVELY else SMALL, without=guard)
    print(f"without {guard!r}, after {done.states:,} states\n{done.broken}")
    assert done.broken is not None
    assert done.broken.promise == GUARDS[guard]
