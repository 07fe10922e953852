"""Schedules on a real Postgres: each tick has one run, whoever serves it, and whatever comes between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from support.storms import storm

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.agents import SwitchRequest
from onceonly_jobs.contracts.policies import PolicyRequest
from onceonly_jobs.contracts.schedules import BackfillRequest, SchedulePatch, ScheduleRequest
from onceonly_jobs.domain.plans import LIMITS, Plan
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.domain.schedules import BadSchedule, Origin
from onceonly_jobs.errors import ScheduleExists, ScheduleNotFound, UnknownTask
from onceonly_jobs.services import account, claims, governance, runs, schedules, ticks
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.services.ticks import Served
from onceonly_jobs.store import schedules as store
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database, on
from onceonly_jobs.store.schedules import Name, Schedule
from onceonly_jobs.store.statement import is_autocommit
from onceonly_jobs.testing import Clock
from tests.conftest import make_account

WEEK_S = 604_800


@pytest.fixture(autouse=True)
def _job(db: Database) -> None:
    db.run(claims.announce, [JobSpec(name="report", queue="q", max_attempts=2)])


@pytest.fixture
def make(db: Database, caller: Caller, settings: Settings) -> Callable[..., Schedule]:
    """Makes a schedule `s` of tenant `t`, each second unless told otherwise."""

    def made(name: str = "s", **fields: Any) -> Schedule:
        if not {"cron", "every_s", "at"} & set(fields):
            fields["every_s"] = 1
        request = ScheduleRequest(name=name, **{"task": "report", **fields})
        return db.run(schedules.create, "k", caller.tenant_id, request, settings)

    return made


@pytest.fixture
def serve(db: Database, settings: Settings) -> Callable[..., Served | None]:
    def served(name: str = "s", tenant: str = "t") -> Served | None:
        return db.run(ticks.serve, Name(tenant, name), settings)

    return served


def rows(db: Database, query: str, **params: Any) -> list[dict[str, Any]]:
    with db.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(query), params).mappings()]


def run_keys(db: Database) -> list[str]:
    return [row["key"] for row in rows(db, "SELECT key FROM runs ORDER BY key")]


def history(db: Database, name: str = "s") -> list[tuple[str, str]]:
    """State and source of the ticks, oldest first."""
    found = db.run(ticks.latest, "t", name, 500, 0)
    return [(tick.state.value, tick.source) for tick in reversed(found)]


def states(db: Database, name: str = "s") -> list[str]:
    return [state for state, _ in history(db, name)]


def expected_keys(schedule: Schedule, count: int, name: str = "s") -> list[str]:
    first = schedule.next_tick_at
    assert first is not None
    return [f"cron:{name}:{first + timedelta(seconds=n):%Y-%m-%dT%H:%M:%SZ}" for n in range(count)]


def test_a_tick_is_a_run_under_its_key(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller
) -> None:
    schedule = make(cron="0 6 * * *", tz="Europe/Kyiv", payload={"day": 1}, metadata={"team": "a"}, ttl=90)
    assert serve() is None
    clock.advance((schedule.next_tick_at - schedule.read_at).total_seconds() + 1)
    served = serve()
    (row,) = rows(db, "SELECT * FROM runs")
    (event,) = rows(db, "SELECT type, data FROM run_events")
    assert (event["type"], event["data"]["schedule"]) == ("run_queued", "s")
    tick = f"{schedule.next_tick_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert (row["key"], row["job"], row["queue"], row["state"]) == (f"cron:s:{tick}", "report", "q", "queued")
    assert row["metadata"] == {
        "team": "a",
        "task": "report",
        "payload": {"day": 1},
        "schedule": {"name": "s", "tick": tick, "source": "scheduler"},
    }
    assert (row["lease_ttl_s"], row["max_attempts"], row["schedule"]) == (90, 2, "s")
    assert [due.key for due in served.due] == [row["key"]]
    assert serve() is None
    after = db.run(schedules.find, "t", "s")
    assert after.last_tick_at == schedule.next_tick_at
    assert after.next_tick_at > schedule.next_tick_at
    assert after.version == schedule.version


def test_of_many_schedulers_each_tick_is_served_once(
    db: Database, make: Any, settings: Settings, clock: Clock
) -> None:
    schedule = make(misfire="catch_up", catch_up_limit=1000, misfire_grace_s=0)
    clock.advance(120)
    served: list[Served] = []

    def compete() -> None:
        while (found := db.run(ticks.due, 10, [])) != []:
            for name in found:
                mine = db.run(ticks.serve, name, settings)
                if mine is not None:
                    served.append(mine)

    storm(4, compete)
    fired = [tick.key for one in served for tick in one.ticks]
    assert max(Counter(fired).values()) == 1
    assert sorted(fired) == run_keys(db) == expected_keys(schedule, len(fired))
    assert len(fired) >= 120
    assert rows(db, "SELECT version FROM runs WHERE version > 1") == []


def test_a_scheduler_that_dies_in_between_has_changed_nothing(
    db: Database, make: Any, serve: Any, settings: Settings, clock: Clock
) -> None:
    """Runs, history and advance are one transaction: at whichever statement it ends, all of it is to be done again."""
    assert not is_autocommit(ticks.serve)
    make(misfire="catch_up")
    clock.advance(10)
    for cut in range(1, 40):
        with db.engine.connect() as connection:
            operation = ticks.serve(Name("t", "s"), settings)
            if on_some(connection, operation, cut):
                break
            connection.rollback()
        assert (run_keys(db), states(db)) == ([], [])
    assert cut > 10
    served = serve()
    assert served is not None
    assert len(run_keys(db)) == len(served.ticks) >= 10


def on_some(connection: sa.Connection, operation: Any, most: int) -> bool:
    """Execute that many statements; whether that was all of them."""
    answer: Any = None
    for _ in range(most):
        try:
            statement = operation.send(answer)
        except StopIteration:
            return True
        answer = statement.read(connection.execute(statement.query, statement.params))
    return False


def test_ticks_of_one_transaction_count_in_one_row(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    """Two that each hold a row that the other one wants would wait for each other."""
    make(misfire="catch_up")
    clock.advance(20)
    serve()
    assert len(run_keys(db)) >= 20
    assert rows(db, "SELECT count(*) AS n FROM usage_counters") == [{"n": 1}]


def test_a_tick_that_was_served_meanwhile_moves_nothing(
    db: Database, make: Any, serve: Any, clock: Clock
) -> None:
    schedule = make()
    clock.advance(3)
    serve()
    late = {"next_tick_at": None, "last_tick_at": None}
    assert db.run(lambda: iter(store.advance(schedule, **late))) == 0
    assert db.run(schedules.find, "t", "s").next_tick_at > schedule.next_tick_at


def test_a_second_scheduler_leaves_a_schedule_alone_that_the_first_has_in_hand(
    db: Database, make: Any, serve: Any, settings: Settings, clock: Clock
) -> None:
    make()
    clock.advance(3)
    with db.engine.begin() as connection:
        first = on(connection, ticks.serve(Name("t", "s"), settings))
        assert first is not None
        assert serve() is None
    assert serve() is None


def test_a_change_under_way_is_not_overwritten_by_a_tick(
    db: Database, make: Any, serve: Any, settings: Settings, clock: Clock
) -> None:
    schedule = make()
    clock.advance(3)
    with db.engine.begin() as connection:
        on(connection, schedules.set_paused("k", "t", "s", True))
        assert serve() is None
    assert serve() is None
    assert schedule.next_tick_at is not None
    assert run_keys(db) == []


def test_the_time_zone_of_the_session_does_not_matter(
    database_url: str, make: Any, settings: Settings, clock: Clock
) -> None:
    """Where the clock on the wall is set, sums of local times would be wrong by an hour."""
    made = make(every_s=3600)
    url = sa.make_url(database_url).update_query_dict({"options": "-c timezone=America/New_York"})
    elsewhere = Database(url.render_as_string(hide_password=False))
    found = elsewhere.run(schedules.find, "t", "s")
    assert found.next_tick_at == made.next_tick_at
    for at in (found.next_tick_at, found.anchor_at, found.read_at, found.created_at):
        assert at is not None
        assert at.tzinfo is UTC
    elsewhere.close()


@pytest.mark.parametrize(
    ("zone", "before", "fixed", "hourly"),
    [
        # 02:30 of Berlin and New York: skipped in spring, so right after the jump; in autumn it is shown twice in
        # Berlin, so once and in the first pass, and once anyway in New York, which repeats the hour before it.
        ("Europe/Berlin", datetime(2030, 3, 31, 0, 30, tzinfo=UTC), ["01:00"], ["01:00", "02:00", "03:00"]),
        ("Europe/Berlin", datetime(2030, 10, 26, 23, 30, tzinfo=UTC), ["00:30"], ["00:00", "01:00", "02:00"]),
        (
            "America/New_York",
            datetime(2030, 3, 10, 6, 30, tzinfo=UTC),
            ["07:00"],
            ["07:00", "08:00", "09:00"],
        ),
        (
            "America/New_York",
            datetime(2030, 11, 3, 4, 30, tzinfo=UTC),
            ["07:30"],
            ["05:00", "06:00", "07:00"],
        ),
    ],
)
def test_a_clock_change_makes_the_runs_of_the_table(
    db: Database,
    make: Any,
    serve: Any,
    clock: Clock,
    zone: str,
    before: datetime,
    fixed: list[str],
    hourly: list[str],
) -> None:
    """The database's clock goes over the change; times in UTC, as in the runs' keys."""
    clock.advance((before - rows(db, "SELECT onceonly_now() AS now")[0]["now"]).total_seconds())
    make("fixed", cron="30 2 * * *", tz=zone, misfire="catch_up")
    make("hourly", cron="0 * * * *", tz=zone, misfire="catch_up")
    clock.advance(3 * 3600 + 300)
    serve("fixed")
    serve("hourly")
    times = [(name, key[-9:-4]) for _, name, key in (key.split(":", 2) for key in run_keys(db))]
    assert times == [*[("fixed", at) for at in fixed], *[("hourly", at) for at in hourly]]


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ({"misfire": "skip"}, ["misfired"] * 2),
        ({"misfire": "once"}, ["misfired", "fired"]),
        ({"misfire": "catch_up"}, ["fired"] * 2),
        ({"misfire": "catch_up", "catch_up_limit": 1}, ["misfired", "fired"]),
        ({"misfire": "skip", "misfire_grace_s": 3600}, ["misfired", "fired"]),
    ],
)
def test_missed_ticks_go_by_the_misfire_policy(
    db: Database, make: Any, serve: Any, clock: Clock, misfire: dict[str, Any], expected: list[str]
) -> None:
    schedule = make(cron="0 6 * * *", **misfire)
    late = schedule.next_tick_at - schedule.read_at + timedelta(days=1, minutes=30)
    clock.advance(late.total_seconds())
    serve()
    assert states(db) == expected
    assert len(run_keys(db)) == expected.count("fired")
    assert serve() is None


def test_a_late_second_is_no_missed_one(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    schedule = make(misfire="skip")
    clock.advance(4)
    serve()
    assert run_keys(db) == expected_keys(schedule, len(run_keys(db)))
    assert len(run_keys(db)) >= 4
    assert set(states(db)) == {"fired"}


def finish(db: Database, key: str) -> None:
    run = db.run(runs.find, "t", key)
    claim = db.run(claims.claim, run.id, "report", 15, None)
    assert claim is not None
    assert db.run(claims.complete, claim, {}, WEEK_S) is claims.Ending.STORED


def test_overlap_skip_waits_for_the_earlier_run(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    make(every_s=60, overlap="skip")
    clock.advance(60)
    serve()
    (first,) = run_keys(db)
    clock.advance(60)
    serve()
    assert states(db) == ["fired", "skipped"]
    (skipped, _) = db.run(ticks.latest, "t", "s", 2, 0)
    assert skipped.detail == f"{first} was still active"
    finish(db, first)
    clock.advance(60)
    serve()
    assert states(db) == ["fired", "skipped", "fired"]


def test_a_triggered_run_is_an_earlier_run_too(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller, settings: Settings
) -> None:
    make(every_s=60, overlap="skip")
    db.run(ticks.trigger, caller, "s", "now", settings)
    clock.advance(60)
    serve()
    assert history(db) == [("fired", "trigger"), ("skipped", "scheduler")]


def test_overlap_cancel_previous_makes_room(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    make(every_s=60, overlap="cancel_previous")
    clock.advance(60)
    serve()
    (first,) = run_keys(db)
    claim = db.run(claims.claim, db.run(runs.find, "t", first).id, "report", 15, None)
    assert claim is not None
    clock.advance(60)
    served = serve()
    assert served.cancelled == [first]
    cancelled, second = rows(db, "SELECT state, error_message, schedule FROM runs ORDER BY id")
    assert (cancelled["state"], second["state"]) == ("cancelled", "queued")
    assert cancelled["error_message"] == f"replaced by {served.due[0].key}"
    # Its worker learns of it.
    clock.advance(1)
    assert db.run(claims.heartbeat, claim, 15) is claims.Ending.CANCELLED


def test_ticks_of_a_pause_are_dropped(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    make(misfire="catch_up")
    clock.advance(2)
    serve()
    before = run_keys(db)
    paused = db.run(schedules.set_paused, "k", "t", "s", True)
    assert paused.status == "paused"
    clock.advance(100)
    assert db.run(ticks.due, 10, []) == []
    assert serve() is None
    resumed = db.run(schedules.set_paused, "k", "t", "s", False)
    assert resumed.next_tick_at > resumed.read_at
    clock.advance(2)
    serve()
    assert len(before) + 2 <= len(run_keys(db)) <= len(before) + 3
    assert set(states(db)) == {"fired"}


def test_ticks_are_governed_like_any_run(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller
) -> None:
    policy = PolicyRequest(max_actions_per_hour=2, max_spend_usd_per_day=10.0)
    db.run(governance.set_policy, caller, "robot", policy)
    make(agent_id="robot", metadata={"spend_usd": 1.5}, misfire="catch_up", misfire_grace_s=0)
    clock.advance(4)
    serve()
    assert states(db)[:3] == ["fired", "fired", "refused"]
    newest = db.run(ticks.latest, "t", "s", 1, 0)[0]
    assert newest.detail == "max_actions_per_hour_exceeded"
    (agent,) = rows(db, "SELECT hour_actions, day_spend_micro_usd FROM agents WHERE agent_id = 'robot'")
    assert (agent["hour_actions"], agent["day_spend_micro_usd"]) == (2, 3_000_000)
    decisions = rows(db, "SELECT actor, allowed FROM audit_decisions WHERE agent_id = 'robot' ORDER BY id")
    assert {row["actor"] for row in decisions} == {"schedule:s"}
    assert [row["allowed"] for row in decisions][:3] == [True, True, False]


def test_a_schedule_may_plan_tool_calls(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller
) -> None:
    make(task=None, agent_id="robot", metadata={"actions": [{"tool": "send_email"}]})
    clock.advance(1)
    assert serve().due[0].job == runs.ACTIONS
    (row,) = rows(db, "SELECT job, metadata FROM runs LIMIT 1")
    assert (row["metadata"]["agent_id"], row["job"]) == ("robot", runs.ACTIONS)
    db.run(account.set_plan, "t", Plan.FREE)
    clock.advance(1)
    serve()
    newest = db.run(ticks.latest, "t", "s", 1, 0)[0]
    assert (newest.state.value, newest.detail) == ("refused", "upgrade required")


WEBHOOK = sa.text("""
INSERT INTO webhooks (tenant_id, url, secret_id, secret_mask, secret_sealed)
VALUES ('t', 'https://hooks.example.com', 'id', '***', 'sealed')
""")


def test_a_refused_tick_is_told_of_at_most_once_an_hour(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller, settings: Settings
) -> None:
    """Nobody waits for its answer, as somebody does for that of a call."""
    with db.engine.begin() as connection:
        connection.execute(WEBHOOK)
    db.run(governance.set_policy, caller, "robot", PolicyRequest(blocked_tools=["report"]))
    make("s", agent_id="robot", payload={"secret": 1})
    make("gone")
    make("off", agent_id="disabled")
    make("paused", agent_id="robot", paused=True)
    db.run(governance.disable, caller, "disabled", SwitchRequest(), WEEK_S)
    with db.engine.begin() as connection:
        connection.execute(sa.text("UPDATE schedules SET task = 'no_more' WHERE name = 'gone'"))
    db.run(ticks.trigger, caller, "paused", None, settings)
    for _ in range(3):
        clock.advance(1)
        for name in ("s", "gone", "off"):
            serve(name)
    told = rows(db, "SELECT type, data FROM notifications ORDER BY id")
    assert {row["type"] for row in told} == {"run.failed"}
    policy, unknown = [row["data"] for row in told]
    assert set(policy) == set(unknown)
    assert policy["key"].startswith("cron:s:")
    assert (policy["job"], policy["agent_id"], policy["error_code"]) == ("report", "robot", "policy_blocked")
    assert (policy["message"], policy["attempt"]) == ("tool_explicitly_blocked", 0)
    assert policy["decision_id"] is not None
    assert (unknown["job"], unknown["error_code"], unknown["decision_id"]) == (
        "no_more",
        "tick_refused",
        None,
    )
    assert "no_more" in unknown["message"]
    clock.advance(3600)
    serve("s")
    assert len(rows(db, "SELECT FROM notifications")) == 3


def test_refused_ticks_go_by_the_switches(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller
) -> None:
    with db.engine.begin() as connection:
        connection.execute(WEBHOOK)
        connection.execute(sa.text("UPDATE tenants SET run_failure_notifications_enabled = false"))
    db.run(governance.set_policy, caller, "robot", PolicyRequest(blocked_tools=["report"]))
    make(agent_id="robot")
    clock.advance(1)
    serve()
    assert states(db) == ["refused"] * len(states(db))
    assert rows(db, "SELECT FROM notifications") == []


def test_the_kill_switch_stops_ticks(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller
) -> None:
    make(agent_id="robot")
    db.run(governance.disable, caller, "robot", SwitchRequest(), WEEK_S)
    clock.advance(1)
    served = serve()
    assert served.due == []
    assert set(states(db)) == {"refused"}


def test_ticks_are_metered_and_a_used_up_quota_refuses_them(
    db: Database, settings: Settings, serve: Any, clock: Clock
) -> None:
    free = make_account(db, "free", Plan.FREE).caller
    request = ScheduleRequest(name="s", task="report", every_s=1, misfire="catch_up", misfire_grace_s=0)
    db.run(schedules.create, "k", "free", request, settings)
    with db.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO usage_counters (tenant_id, kind, day, slot, usage) VALUES"
                " ('free', 'ai', (onceonly_now() AT TIME ZONE 'UTC')::date, 99, :used)"
            ),
            {"used": LIMITS[Plan.FREE].ai_per_month - 2},
        )
    clock.advance(5)
    serve(tenant="free")
    found = [tick.state.value for tick in reversed(db.run(ticks.latest, "free", "s", 9, 0))]
    assert found[:3] == ["fired", "fired", "refused"]
    assert len(run_keys(db)) == 2
    started = db.run(ticks.trigger, free, "s", None, settings)
    assert isinstance(started.taken, Refused)


def test_a_disabled_tenants_schedules_rest(
    db: Database, make: Any, serve: Any, clock: Clock, caller: Caller
) -> None:
    make()
    db.run(account.set_disabled, "t", True)
    clock.advance(5)
    assert db.run(ticks.due, 10, []) == []
    assert db.run(ticks.next_due_in_s, []) is None
    assert serve() is None
    db.run(account.set_disabled, "t", False)
    assert db.run(ticks.due, 10, []) == [Name("t", "s")]
    assert db.run(ticks.due, 10, [Name("t", "s")]) == []


def test_jitter_moves_the_run_and_not_its_key(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    schedule = make(every_s=60, jitter_s=3600)
    clock.advance(60)
    served = serve()
    assert served.due == []
    (row,) = rows(db, "SELECT key, due_at, publish_at FROM runs")
    assert row["key"] == expected_keys(schedule, 1)[0]
    (coming,) = [one for one in ticks.coming(schedule, 1) if one.key == row["key"]]
    assert abs(row["due_at"] - coming.due_at) < timedelta(seconds=2)
    assert row["publish_at"] == row["due_at"]


def test_a_single_time_fires_once_and_is_finished(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    make(at=at)
    clock.advance(3601)
    serve()
    assert run_keys(db) == [f"cron:s:{at:%Y-%m-%dT%H:%M:%SZ}"]
    assert db.run(schedules.find, "t", "s").status == "finished"
    assert serve() is None


def test_a_backfill_makes_each_missing_run_once(
    db: Database, make: Any, serve: Any, settings: Settings, clock: Clock, caller: Caller
) -> None:
    schedule = make(every_s=60, misfire="skip")
    first = schedule.next_tick_at
    clock.advance(60)
    serve()
    clock.advance(600)
    serve()
    assert states(db).count("misfired") == 9
    request = BackfillRequest.model_validate({"from": first, "to": first + timedelta(seconds=540)})
    for created in (9, 0):
        wanted = db.run(ticks.backfill_ticks, "t", "s", request)
        assert len(wanted) == 10
        started = [db.run(ticks.backfill_tick, caller, "s", tick, settings) for tick in wanted]
        assert sum(one.due is not None for one in started) == created
    assert len(run_keys(db)) == len(set(run_keys(db))) == 11
    assert history(db).count(("fired", "backfill")) == 9
    assert history(db)[0] == ("fired", "scheduler")


@pytest.mark.parametrize(
    ("from_s", "to_s", "field", "why"),
    [(-10, -20, "to", "before from"), (-10, 500, "to", "of the past"), (-2000, -10, "to", "more than 500")],
)
def test_a_backfill_is_of_a_bounded_past(
    db: Database, make: Any, from_s: int, to_s: int, field: str, why: str
) -> None:
    now = make().read_at
    request = BackfillRequest.model_validate(
        {"from": now + timedelta(seconds=from_s), "to": now + timedelta(seconds=to_s)}
    )
    with pytest.raises(BadSchedule, match=why) as error:
        db.run(ticks.backfill_ticks, "t", "s", request)
    assert error.value.field == field


def test_a_trigger_is_one_run_per_id(db: Database, make: Any, settings: Settings, caller: Caller) -> None:
    make(every_s=3600, paused=True)
    first = db.run(ticks.trigger, caller, "s", "x", settings)
    again = db.run(ticks.trigger, caller, "s", "x", settings)
    assert (first.taken.outcome, again.taken.outcome, again.due) == ("acquired", "held", None)
    assert run_keys(db) == ["trigger:s:x"]
    db.run(ticks.trigger, caller, "s", None, settings)
    assert len(run_keys(db)) == 2
    (row,) = rows(db, "SELECT actor FROM audit_decisions WHERE run_key = 'trigger:s:x'")
    assert row["actor"] == caller.key_id


def test_creating_it_again_is_answered_like_the_first_time(db: Database, make: Any) -> None:
    first = make(cron="@daily")
    again = make(cron="@daily")
    assert (again.version, again.created_at, again.next_tick_at) == (
        first.version,
        first.created_at,
        first.next_tick_at,
    )
    with pytest.raises(ScheduleExists):
        make(cron="@hourly")


def test_of_many_creators_one_wins_and_all_are_answered(db: Database, make: Any) -> None:
    answers = storm(8, lambda: make(cron="@daily").created_at)
    assert len(set(answers)) == 1


def test_what_can_not_run_is_not_made(db: Database, make: Any) -> None:
    with pytest.raises(UnknownTask):
        make(task="nobody")
    with pytest.raises(UnknownTask):
        make(task="onceonly.confirm")
    with pytest.raises(BadSchedule, match="no registered job uses this queue"):
        make(queue="unacked")
    with pytest.raises(BadSchedule, match="no tick after now"):
        make(at=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(BadSchedule, match="no tick after now"):
        make(cron="@daily", end_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert rows(db, "SELECT name FROM schedules") == []


def change(db: Database, settings: Settings, **fields: Any) -> Schedule:
    return db.run(schedules.change, "k2", "t", "s", SchedulePatch(**fields), settings)


def test_other_times_begin_after_now_and_other_fields_move_nothing(
    db: Database, make: Any, settings: Settings, clock: Clock
) -> None:
    first = make(every_s=60)
    clock.advance(45)
    changed = change(db, settings, payload={"a": 1}, jitter_s=3)
    assert (changed.next_tick_at, changed.anchor_at) == (first.next_tick_at, first.anchor_at)
    assert (changed.version, changed.updated_by, changed.edited) == (2, "k2", [])
    clock.advance(100)
    changed = change(db, settings, cron="0 6 * * *", tz="Asia/Tokyo")
    assert (changed.definition.every_s, changed.definition.cron) == (None, "0 6 * * *")
    assert changed.next_tick_at > changed.read_at
    assert changed.next_tick_at.astimezone(UTC).hour == 21
    cleared = change(db, settings, tz=None, payload=None)
    assert (cleared.definition.tz, cleared.definition.payload) == ("UTC", None)
    assert change(db, settings, tz="UTC").version == cleared.version
    with pytest.raises(BadSchedule, match="exactly one"):
        change(db, settings, cron=None)
    with pytest.raises(ScheduleNotFound):
        db.run(schedules.change, "k", "t", "other", SchedulePatch(tz="UTC"), settings)


def declared(**fields: Any) -> ScheduleRequest:
    return ScheduleRequest.model_validate({"name": "report", "task": "report", **fields})


def test_code_keeps_its_schedules_up_to_date_but_for_what_was_edited(
    db: Database, settings: Settings, clock: Clock
) -> None:
    def standing() -> Schedule:
        return db.run(schedules.find, "default", "report")

    db.run(schedules.declare, [declared(cron="0 6 * * *", tz="Europe/Kyiv", jitter_s=5)], settings)
    first = standing()
    assert (first.origin, first.created_by, first.version) == (Origin.CODE, "code", 1)
    db.run(schedules.declare, [declared(cron="0 6 * * *", tz="Europe/Kyiv", jitter_s=5)], settings)
    assert (standing().version, standing().next_tick_at) == (1, first.next_tick_at)

    db.run(schedules.change, "k", "default", "report", SchedulePatch(cron="0 7 * * *"), settings)
    assert standing().edited == ["at", "cron", "every_s"]
    db.run(schedules.set_paused, "k", "default", "report", True)
    db.run(schedules.declare, [declared(every_s=60, tz="Asia/Tokyo", jitter_s=9)], settings)
    merged = standing()
    assert (merged.definition.cron, merged.definition.every_s) == ("0 7 * * *", None)
    assert (merged.definition.tz, merged.definition.jitter_s) == ("Asia/Tokyo", 9)
    assert merged.status == "paused"

    db.run(schedules.delete, "k", "default", "report")
    found = db.run(schedules.declare, [declared(every_s=60)], settings)
    assert found.deleted == ["report"]
    with pytest.raises(ScheduleNotFound):
        standing()
    db.run(schedules.create, "k", "default", declared(every_s=30), settings)
    assert (standing().origin, standing().edited) == (Origin.API, [])
    assert db.run(schedules.declare, [declared(every_s=60)], settings).kept == ["report"]
    assert standing().definition.every_s == 30


def test_many_workers_may_declare_at_once(db: Database, settings: Settings) -> None:
    storm(8, lambda: db.run(schedules.declare, [declared(cron="@daily")], settings))
    assert rows(db, "SELECT version FROM schedules") == [{"version": 1}]


def test_deleting_takes_the_history_and_leaves_the_runs(
    db: Database, make: Any, serve: Any, clock: Clock
) -> None:
    make()
    clock.advance(2)
    serve()
    db.run(schedules.delete, "k", "t", "s")
    assert rows(db, "SELECT name FROM schedules UNION ALL SELECT name FROM schedule_ticks") == []
    assert run_keys(db) != []
    with pytest.raises(ScheduleNotFound):
        db.run(schedules.delete, "k", "t", "s")


def test_history_is_kept_for_a_while(db: Database, make: Any, serve: Any, clock: Clock) -> None:
    make(every_s=60)
    clock.advance(60)
    serve()
    assert db.run(ticks.forget_old, 3600, 10) == 0
    clock.advance(3601)
    assert db.run(ticks.forget_old, 3600, 10) == 1
