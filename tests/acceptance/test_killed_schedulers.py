"""Schedules with real processes: schedulers that are killed at random, workers that declare them in code."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.process_nodes import Process
from support.worker_system import System

from onceonly_jobs.contracts.schedules import ScheduleRequest
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.services import account, schedules

MINUTES = float(os.environ.get("ONCEONLY_TEST_SCHEDULE_MINUTES", "0.2"))
SEED = 20260301
SCHEDULES = int(os.environ.get("ONCEONLY_TEST_SCHEDULES", "60"))
EVERY_S = 3

pytestmark = pytest.mark.timeout(MINUTES * 60 + 240)

TICKS = """
SELECT t.tick_at, t.key, t.state, t.detail, r.version, r.id IS NOT NULL AS has_run,
       extract(epoch FROM r.first_seen_at - t.tick_at)::double precision AS late_s,
       (SELECT count(*) FROM audit_decisions d WHERE d.tenant_id = t.tenant_id AND d.run_key = t.key) AS decisions
FROM schedule_ticks t LEFT JOIN runs r ON r.tenant_id = t.tenant_id AND r.key = t.key
WHERE t.tenant_id = 't' ORDER BY t.tick_at
"""

BEHIND = "SELECT name FROM schedules WHERE next_tick_at <= :now"


def make_schedule(parts: System) -> None:
    parts.db.run(account.ensure_tenant, "t", Plan.AGENCY)
    request = ScheduleRequest(name="each", every_s=1, misfire="catch_up", catch_up_limit=1000)
    parts.db.run(schedules.create, "k", "t", request, parts.settings)


def kill_at_random(processes: list[Process], seconds: float) -> int:
    """Kill one of them every few moments, sometimes all, and start them again; how many kills."""
    chance = random.Random(SEED)
    kills, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(1, 8))
        victims = processes if chance.random() < 0.25 else [chance.choice(processes)]
        for victim in victims:
            victim.kill()
            kills += 1
        time.sleep(chance.choice([0, 0, 1]))
        for victim in victims:
            victim.start()
    return kills


def test_each_tick_has_one_run_while_schedulers_are_killed_at_random(parts: System) -> None:
    """ONCEONLY_TEST_SCHEDULE_MINUTES makes it longer."""
    make_schedule(parts)
    processes = [parts.process("beat") for _ in range(2)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.ready()
        kills = kill_at_random(processes, MINUTES * 60)
        now: datetime = parts.rows("SELECT onceonly_now() AS now")[0]["now"]
        parts.until(lambda: next_tick(parts) > now, "all ticks up to now served")
    finally:
        for process in processes:
            process.teardown()

    ticks = parts.rows(TICKS)
    first, last = ticks[0]["tick_at"], ticks[-1]["tick_at"]
    every_second = [first + timedelta(seconds=n) for n in range(int((last - first).total_seconds()) + 1)]
    assert [tick["tick_at"] for tick in ticks] == every_second, "none missing, none twice"
    assert last >= now - timedelta(seconds=1)
    assert {(tick["state"], tick["detail"], tick["has_run"], tick["version"]) for tick in ticks} == {
        ("fired", None, True, 1)
    }, "each was served once, and found no run of another's"
    assert {tick["decisions"] for tick in ticks} == {1}
    assert len(ticks) == parts.rows("SELECT count(*) AS n FROM runs")[0]["n"]
    assert Counter(row["type"] for row in parts.rows("SELECT type FROM run_events")) == {
        "run_queued": len(ticks)
    }
    assert kills >= 2
    print(summary(ticks, kills))


def test_of_five_schedulers_each_tick_of_many_schedules_has_one_run(parts: System) -> None:
    """200 schedules, unless ONCEONLY_TEST_SCHEDULES says otherwise; ONCEONLY_TEST_SCHEDULE_MINUTES makes it longer."""
    parts.db.run(account.ensure_tenant, "t", Plan.AGENCY)
    processes = [parts.process("beat") for _ in range(5)]
    try:
        for process in processes:
            process.start()
        for number in range(SCHEDULES):
            request = ScheduleRequest(
                name=f"s{number}", every_s=EVERY_S, misfire="catch_up", catch_up_limit=1000
            )
            parts.db.run(schedules.create, "k", "t", request, parts.settings)
        for process in processes:
            process.ready()
        kills = kill_at_random(processes, MINUTES * 30)
        now: datetime = parts.rows("SELECT onceonly_now() AS now")[0]["now"]
        parts.until(lambda: parts.rows(BEHIND, now=now) == [], "all ticks up to now served")
    finally:
        for process in processes:
            process.teardown()

    ticks = parts.rows(TICKS)
    by_schedule: dict[str, list[datetime]] = {}
    for tick in ticks:
        by_schedule.setdefault(tick["key"].split(":")[1], []).append(tick["tick_at"])
    assert len(by_schedule) == SCHEDULES
    for name, times in by_schedule.items():
        expected = [times[0] + timedelta(seconds=n * EVERY_S) for n in range(len(times))]
        assert times == expected, f"{name}: none missing, none twice"
        assert times[-1] > now - timedelta(seconds=EVERY_S)
    assert {(tick["state"], tick["has_run"], tick["version"], tick["decisions"]) for tick in ticks} == {
        ("fired", True, 1, 1)
    }
    assert len(ticks) == parts.rows("SELECT count(*) AS n FROM runs")[0]["n"]
    assert kills >= 1
    print(summary(ticks, kills))


def next_tick(parts: System) -> Any:
    return parts.rows("SELECT next_tick_at FROM schedules")[0]["next_tick_at"]


def summary(ticks: list[dict[str, Any]], kills: int) -> str:
    late = sorted(tick["late_s"] for tick in ticks)
    middle, worst = late[len(late) // 2], late[-1]
    return (
        f"\n{len(ticks)} ticks, each with one run, {kills} kills; late by {middle * 1000:.0f} ms (median), "
        f"{worst:.1f} s (worst: no scheduler ran)"
    )


def test_a_job_that_declares_a_schedule_runs_by_itself(parts: System) -> None:
    app = ["-m", "onceonly_jobs.cli.main", "worker", "--app", "support.scheduled_app", "--concurrency", "1"]
    processes = [parts.process("beat"), parts.started_as("worker", *app)]
    done = "SELECT key, result FROM runs WHERE state = 'completed' ORDER BY key"
    try:
        for process in processes:
            process.start()
        parts.until(lambda: len(parts.rows(done)) >= 3, "three runs by itself")
    finally:
        for process in processes:
            process.teardown()
    rows = parts.rows(done)
    ticks = [datetime.fromisoformat(row["key"].removeprefix("cron:by_itself:")) for row in rows]
    assert [tick - ticks[0] for tick in ticks] == [timedelta(seconds=n) for n in range(len(ticks))]
    name = {"name": "by_itself", "source": "scheduler"}
    assert [row["result"] for row in rows] == [
        {
            "schedule": {**name, "tick": row["key"].removeprefix("cron:by_itself:")},
            "payload": {"from": "code"},
        }
        for row in rows
    ]
    (schedule,) = parts.rows("SELECT tenant_id, origin, created_by FROM schedules")
    assert schedule == {"tenant_id": "default", "origin": "code", "created_by": "code"}
