"""The command line with some guards of its statements broken: what the torture has to find out.

python broken_guards.py GUARD[,GUARD...] api --port 8080
"""

from __future__ import annotations

import sys
from types import ModuleType

import sqlalchemy as sa

from onceonly_jobs.cli.main import main
from onceonly_jobs.store import calls, claims, claims_many, locks, runs


def weaken(module: ModuleType, name: str, guard: str, instead: str) -> None:
    """Put something else in the place of a guard."""
    query = getattr(module, name).text
    assert guard in query, f"{module.__name__}.{name} has no such guard"
    setattr(module, name, sa.text(query.replace(guard, instead)))


def fencing() -> None:
    """A worker's result is taken, and its claim prolonged, whoever holds the run by then."""
    for name in ("_COMPLETE", "_COMPLETE_BOOKED", "_HEARTBEAT"):
        weaken(claims, name, claims._CURRENT, "id = :id AND state = 'in_progress'")
    mine = "r.fencing_token = g.fencing_token AND r.worker_lease_id = g.worker_lease_id AND "
    for guard, instead in ((mine, ""), ("r.lease_until_at > onceonly_now()", "true")):
        weaken(claims_many, "_COMPLETE", guard, instead)


def expiry() -> None:
    """A lease is given to the next who asks, though it has not run out."""
    weaken(runs, "_TAKE", "r.owner = 'caller' AND r.lease_until_at <= onceonly_now()", "r.owner = 'caller'")


def budget() -> None:
    """The day's spend is not compared with its limit."""
    for module, name in ((calls, "_JUDGE"), (runs, "_TAKE_GOVERNED")):
        for spend in ("w.spend + c.cost", "v.spend + v.cost_so_far"):
            weaken(module, name, f"WHEN {spend} > ", f"WHEN false AND {spend} > ")


def switch() -> None:
    """A claim does not ask what the run's agent may do now."""
    weaken(claims, "_CLAIM", "code <> 'ok'", "code = 'never'")


def dedup() -> None:
    """A lock that is held is given away again."""
    weaken(locks, "_CHECK", "WHERE l.locked_until_at <= onceonly_now()", "")


GUARDS = {guard.__name__: guard for guard in (fencing, expiry, budget, switch, dedup)}

if __name__ == "__main__":
    for guard in sys.argv[1].split(","):
        GUARDS[guard]()
    sys.argv = ["onceonly-jobs", *sys.argv[2:]]
    main()
