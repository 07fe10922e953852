"""`onceonly-jobs schedules`: the commands of an operator, in this process and over a real database."""

from __future__ import annotations

import pytest
from support.commands import Command, commands

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.services import account, claims
from onceonly_jobs.store.database import Database


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ONCEONLY_DATABASE_URL", database_url)
    return commands("schedules")


def test_a_schedule_from_its_making_to_its_end(command: Command, db: Database) -> None:
    db.run(account.ensure_tenant, "default", Plan.AGENCY)
    db.run(claims.announce, [JobSpec(name="report", queue="q")])
    daily = ["--task", "report", "--cron", "30 6 * * *", "--tz", "Europe/Kyiv", "--payload", '{"a": 1}']
    assert "Bad hour" in command("add", "s", "--cron", "0 24 * * *", status=2)
    assert "no job named 'x'" in command("add", "s", "--every", "5", "--task", "x", status=2)
    made = command("add", "s", *daily)
    assert "30 6 * * *" in made
    assert "{'a': 1}" in made
    assert "Europe/Kyiv" in command("list")
    assert "T06:30:00+0" in command("next", "s", "-n", "1")
    edited = command("edit", "s", "--every", "60", "--clear", "tz", "--clear", "payload")
    assert "30 6" not in edited
    assert "UTC" in edited
    assert "{'a': 1}" not in edited
    assert "paused" in command("pause", "s")
    assert "active" in command("resume", "s")
    assert command("trigger", "s", "--id", "x") == "trigger:s:x: acquired\n"
    past = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:04:59Z"]
    assert command("backfill", "s", *past) == "s: 5 ticks, 5 new runs\n"
    assert command("backfill", "s", *past) == "s: 5 ticks, 0 new runs\n"
    shown = command("show", "s")
    assert shown.count("backfill") == 5
    assert shown.count("trigger:s:x") == 1
    assert command("remove", "s") == "s: removed\n"
    assert "no schedule is named 's'" in command("show", "s", status=2)


def test_what_can_not_be_used_is_said_in_one_line(command: Command, db: Database) -> None:
    assert "no tenant named 'default'" in command("add", "s", "--every", "5", status=2)
    db.run(account.ensure_tenant, "default", Plan.AGENCY)
    assert "--payload is not JSON" in command("add", "s", "--every", "5", "--payload", "{", status=2)
    assert "give one of cron, every_s and at" in command("add", "s", status=2)
    assert "Extra inputs" in command("edit", "s", "--clear", "nothing", status=2)
    assert "misfire: " in command("add", "s", "--every", "5", "--misfire", "never", status=2)
    command("add", "s", "--every", "5")
    assert "another schedule is named 's'" in command("add", "s", "--every", "6", status=2)
    assert "to: to is before from" in command(
        "backfill", "s", "--from", "2026-01-02", "--to", "2026-01-01", status=2
    )
