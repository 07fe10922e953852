"""A torture of a few seconds ends clean, and one of a system whose guards are broken does not.

ONCEONLY_TEST_TORTURE_MINUTES makes it longer, with all faults, and shows each broken guard alone.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from onceonly_jobs.torture.checker import SLACK_S, check
from onceonly_jobs.torture.clients import Assignment, Client, opened
from onceonly_jobs.torture.history import Effect, read_effects
from onceonly_jobs.torture.jobs import GOVERNED, WORK
from onceonly_jobs.torture.nemesis import FAULTS
from onceonly_jobs.torture.suite import Plan, evidence_of, prepare, recover, torture
from onceonly_jobs.torture.system import System, running

MINUTES = float(os.environ.get("ONCEONLY_TEST_TORTURE_MINUTES", "0"))
SECONDS = MINUTES * 60 or 10
FEW = ["kill-worker", "pause-worker", "restart-postgres", "flush-redis", "cut", "duplicate"]
SEED = 20260301
BROKEN_GUARDS = Path(__file__).parents[1] / "support" / "broken_guards.py"

# By guard: what the checker calls the damage that it alone does.
CAUGHT = {
    "fencing": "fencing",
    "expiry": "one-holder",
    "budget": "budget",
    "switch": "kill-switch",
    "dedup": "one-winner",
}

pytestmark = pytest.mark.timeout(SECONDS + 300)


def test_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    faults = sorted(FAULTS) if MINUTES else FEW
    plan = Plan(seconds=SECONDS, seed=SEED, faults=faults, least_operations=150)
    report = torture(plan, tmp_path)
    print(report.as_json())
    assert report.violations == []
    assert report.operations >= 150
    assert report.runs > 10
    assert report.tool_calls > 0
    assert sum(report.faults.values()) > 1


def test_broken_guards_are_caught(tmp_path: Path) -> None:
    """All five at once, each by the damage that it alone does."""
    assert damage(tmp_path, *CAUGHT) >= set(CAUGHT.values())


@pytest.mark.skipif(not MINUTES, reason="takes minutes: set ONCEONLY_TEST_TORTURE_MINUTES")
@pytest.mark.parametrize("guard", CAUGHT)
def test_each_broken_guard_is_caught_alone(tmp_path: Path, guard: str) -> None:
    assert damage(tmp_path, guard) & set(CAUGHT.values()) == {CAUGHT[guard]}


def damage(directory: Path, *broken: str) -> set[str]:
    """What the checker finds after each guard was needed once, in a system without some of them."""
    program = (str(BROKEN_GUARDS), ",".join(broken))
    with running(directory, program=program, apis=1, beats=1) as system:
        assignment = prepare(system, Plan(seconds=0, seed=SEED, faults=[]), directory)
        asyncio.run(provoke(system, assignment))
        recover(system, assignment, directory, quiet_s=0)
        return {violation.check for violation in check(evidence_of(system, assignment))}


async def provoke(system: System, assignment: Assignment) -> None:
    """What each of the guards is for, once."""
    async with opened(assignment) as world:
        client = Client(world, 1)
        for _ in range(2):
            await client.post("lock", "lock:1", "/check-lock", {"key": "lock:1", "ttl": 10})
            await client.post("lease", "lease:1", "/ai/lease", {"key": "lease:1", "ttl": 10})
        for number in range(8):
            await client.call("spender-0", "torture.idempotent", number, spend_usd=0.03)
        await claim_what_is_forbidden(system, client)
        await thaw_a_zombie(system, client)


async def claim_what_is_forbidden(system: System, client: Client) -> None:
    """A policy forbids a run that is queued already."""
    for worker in system.of_kind("worker"):
        worker.freeze()
    await client.run_key("governed:policed:1", GOVERNED, {}, agent_id="policed")
    await client.post("forbid", "policed", "/policies/policed", {"blocked_tools": [GOVERNED]})
    await asyncio.sleep(
        2 * SLACK_S
    )  # nearer to the answer than that, the checker can't tell before from after
    for worker in system.of_kind("worker"):
        worker.thaw()
    await client.ask(
        "result", "governed:policed:1", "GET", "/ai/result", params={"key": "governed:policed:1", "wait": 6}
    )


async def thaw_a_zombie(system: System, client: Client) -> None:
    """A worker is frozen past its lease, goes on while another one has its run, and should be the first to end it.

    On a machine that stands still at the wrong moment it is not: then once more.
    """
    for number in range(3):
        key = f"run:{number}"
        await client.run_key(key, WORK, {"seconds": 6})
        (first,) = await asyncio.to_thread(effects, system, "start", key, 1)
        (holder,) = (part for part in system.of_kind("worker") if part.pid == first.data["worker"])
        holder.freeze()
        try:
            await asyncio.to_thread(effects, system, "start", key, 2)
        finally:
            holder.thaw()
        ended, *_ = await asyncio.to_thread(effects, system, "end", key, 1)
        if ended.data["token"] == first.data["token"]:
            return


def effects(system: System, kind: str, key: str, wanted: int) -> list[Effect]:
    """What the witness saw of a run, once there are so many."""
    found: list[Effect] = []

    def enough() -> bool:
        found[:] = [e for e in read_effects(system.witness_path) if (e.kind, e.key) == (kind, key)]
        return len(found) >= wanted

    system.until(enough, f"{key}: {wanted} times {kind}")
    return found
