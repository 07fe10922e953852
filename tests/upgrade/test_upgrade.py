"""From the version before to this one, and back, while clients go on calling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.process_nodes import PATIENCE_S, Process
from support.upgrade_load import Load
from support.versions import NEW, OLD, OLD_SCHEMA, Deployment, register_tool

from onceonly_jobs.store import revisions

pytestmark = pytest.mark.timeout(300)


def some_turns(ours: Deployment, load: Load, turns: int = 6) -> None:
    """Let the clients go on for a while."""
    aim = load.turns + turns
    ours.system.until(lambda: load.turns >= aim or load.wrong, "the clients are served")
    assert load.wrong == []


def schema_wanted(ours: Deployment, api: Process) -> str:
    """The revision that the code of an API process was written for: proof of which version it is."""
    wanted: str = httpx.get(f"{ours.origin(api)}/ready", timeout=30).json()["expected_schema"]
    return wanted


def check(ours: Deployment, load: Load) -> None:
    """What was told is what is stored: nothing lost, nothing done twice."""
    ours.settle()
    assert load.wrong == []
    rows = ours.system.rows("SELECT key, state, owner, fencing_token FROM runs")
    assert {row["state"] for row in rows} == {"completed"}
    by_owner = {row["key"] for row in rows if row["owner"] == "caller"}
    assert by_owner == set(load.leases)
    starts = ours.starts()
    assert set(starts) == set(load.runs)
    assert {len(seen) for key, seen in starts.items() if key.startswith("work:")} == {1}
    for seen in starts.values():
        tokens = [start.token for start in seen]
        assert tokens == sorted(set(tokens)), seen
    locks = {row["key"] for row in ours.system.rows("SELECT key FROM locks")}
    assert locks == set(load.locks)
    asked = [str(request.json["args"]["n"]) for request in ours.tool.requests]
    assert sorted(asked) == sorted(load.tools)
    decided = ours.system.rows("SELECT count(*) AS n FROM audit_decisions WHERE tool = 'mail' AND allowed")
    assert decided == [{"n": len(load.tools)}]


def pairs(ours: Deployment, load: Load) -> set[tuple[str | None, str]]:
    """Which API accepted, and which version's worker started it."""
    return {(load.runs.get(key), start.version) for key, seen in ours.starts().items() for start in seen}


def mixed(ours: Deployment) -> list[str]:
    """The keys of runs that workers of both versions have claimed."""
    return [key for key, seen in ours.starts().items() if {start.version for start in seen} == {OLD, NEW}]


def test_the_old_version_serves_while_the_schema_is_changed_and_is_replaced_part_by_part(
    ours: Deployment,
) -> None:
    api, worker, beat = ours.start(OLD, "api", "worker", "beat")
    register_tool(ours.origin(api), ours.tenant, ours.tool.url)
    with Load([ours.origin(api)], ours.tenant.api_key) as load:
        some_turns(ours, load)
        with ThreadPoolExecutor(1) as pool:
            with ours.busy_with("runs"):
                migrating = pool.submit(ours.migrate, lock_tries=100)
                ours.system.until(ours.migration_waits, "the migration waits for a lock")
                some_turns(ours, load)
                assert not migrating.done()
            migrating.result(PATIENCE_S)
        some_turns(ours, load)
        assert load.repeated["no answer"] == 0
        assert schema_wanted(ours, api) == OLD_SCHEMA

        new_api, new_worker, new_beat = ours.start(NEW, "api", "worker", "beat")
        assert schema_wanted(ours, new_api) == revisions.head()
        load.origins = [ours.origin(api), ours.origin(new_api)]
        every = {(origin, version) for origin in load.origins for version in (OLD, NEW)}
        ours.system.until(lambda: pairs(ours, load) >= every, "each API had runs done by either worker")
        ours.system.until(lambda: mixed(ours), "workers of both versions have claimed one run")
        ours.stop(worker)
        some_turns(ours, load)
        load.origins = [ours.origin(new_api)]
        ours.stop(api)
        some_turns(ours, load)
        beat.kill()  # told to end, that version's scheduler does not always hear it
        some_turns(ours, load)
    check(ours, load)

    ours.stop(new_api, new_worker, new_beat)
    ours.migrate(OLD_SCHEMA)
    api, *_ = ours.start(OLD, "api", "worker", "beat")
    load.origins = [ours.origin(api)]
    with load:
        some_turns(ours, load)
    check(ours, load)
