"""Which ticks fire, and which are missed, against a count of all of them; and what a schedule's times are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onceonly_jobs.domain.schedules import (
    MOST_AT_ONCE,
    MOST_SHOWN,
    BadSchedule,
    Misfire,
    MisfirePolicy,
    Timing,
    due_ticks,
    jitter,
    tick_key,
)

EPOCH = datetime(2026, 3, 1, tzinfo=UTC)


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def every(step_s: int, **more: datetime) -> Timing:
    return Timing(every_s=step_s, anchor_at=EPOCH, **more)


def policy(name: str, *, grace_s: int = 5, limit: int = 10) -> MisfirePolicy:
    return MisfirePolicy(policy=Misfire(name), grace_s=grace_s, limit=limit)


@settings(max_examples=200, deadline=None)
@given(
    step_s=st.integers(1, 90),
    first=st.integers(1, 50),
    late_s=st.integers(0, 5000),
    grace_s=st.integers(0, 120),
    limit=st.integers(1, 40),
    name=st.sampled_from([str(m) for m in Misfire]),
)
def test_what_fires_and_what_is_dropped(
    step_s: int, first: int, late_s: int, grace_s: int, limit: int, name: str
) -> None:
    """By counting: every tick is fired, dropped, or to come; on time ones fire, of late ones those of the policy."""
    expected = EPOCH + s(first * step_s)
    now = expected + s(late_s)
    ticks = [EPOCH + s(n * step_s) for n in range(first, first + late_s // step_s + 2)]
    all_due = [tick for tick in ticks if tick <= now]
    on_time = [tick for tick in all_due if now - tick <= s(grace_s)]
    late = [tick for tick in all_due if now - tick > s(grace_s)]
    wanted = {"skip": 0, "once": 0 if on_time else 1, "catch_up": limit}[name]
    fire = late[len(late) - min(wanted, len(late)) :] + on_time

    found = due_ticks(every(step_s), policy(name, grace_s=grace_s, limit=limit), expected, now)

    assert found.fire == fire[:MOST_AT_ONCE]
    dropped = [tick for tick in reversed(late) if tick not in fire]
    assert found.dropped == dropped[:MOST_SHOWN]
    assert found.more_dropped == (len(dropped) > MOST_SHOWN)
    assert found.next_at == (fire[MOST_AT_ONCE] if len(fire) > MOST_AT_ONCE else ticks[len(all_due)])


def test_many_ticks_fire_in_several_goes() -> None:
    """Each go leaves off where the next one begins; together they fire all that the policy allows."""
    timing, chosen = every(1), policy("catch_up", limit=250)
    now, at, fired = EPOCH + s(1000), EPOCH + s(1), []
    while at <= now:
        go = due_ticks(timing, chosen, at, now)
        fired += go.fire
        assert go.next_at is not None
        at = go.next_at
    assert fired == [EPOCH + s(n) for n in range(745, 1001)]


def test_a_month_of_missed_seconds_is_not_counted_one_by_one() -> None:
    timing = Timing(cron="* * * * * *", anchor_at=EPOCH)
    found = due_ticks(timing, policy("catch_up", limit=3, grace_s=0), EPOCH, EPOCH + s(30 * 86_400 + 0.5))
    assert found.fire == [EPOCH + s(30 * 86_400 - n) for n in (2, 1, 0)]
    assert (len(found.dropped), found.more_dropped) == (MOST_SHOWN, True)


def test_an_interval_counts_from_its_anchor_in_both_directions() -> None:
    timing = every(90)
    assert timing.next_after(EPOCH) == EPOCH + s(90)
    assert timing.next_after(EPOCH + s(89.5)) == EPOCH + s(90)
    assert timing.previous(EPOCH - s(1)) == EPOCH - s(90)


def test_start_and_end_are_included() -> None:
    timing = every(10, start_at=EPOCH + s(20), end_at=EPOCH + s(40))
    ticks = list(timing.between(EPOCH, EPOCH + s(1000)))
    assert ticks == [EPOCH + s(n) for n in (20, 30, 40)]
    assert list(timing.back(EPOCH + s(1000), EPOCH)) == ticks[::-1]
    assert timing.next_after(EPOCH + s(40)) is None


def test_a_single_time_ticks_once() -> None:
    timing = Timing(at=EPOCH, anchor_at=EPOCH)
    assert timing.next_after(EPOCH - s(1)) == EPOCH
    assert timing.next_after(EPOCH) is None
    found = due_ticks(timing, policy("once"), EPOCH, EPOCH + s(3600))
    assert (found.fire, found.dropped, found.next_at) == ([EPOCH], [], None)
    found = due_ticks(timing, policy("skip"), EPOCH, EPOCH + s(3600))
    assert (found.fire, found.dropped, found.next_at) == ([], [EPOCH], None)


def test_jitter_is_the_same_whoever_asks_and_spread_over_its_range() -> None:
    shifts = [jitter("t", "n", EPOCH + s(n), 60).total_seconds() for n in range(200)]
    assert shifts == [jitter("t", "n", EPOCH + s(n), 60).total_seconds() for n in range(200)]
    assert 0 <= min(shifts) < 5
    assert 55 < max(shifts) < 60
    assert jitter("other", "n", EPOCH, 60) != jitter("t", "n", EPOCH, 60)
    assert jitter("t", "n", EPOCH, 0) == s(0)


def test_a_key_names_schedule_and_tick() -> None:
    assert tick_key("daily:report", EPOCH + s(3600)) == "cron:daily:report:2026-03-01T01:00:00Z"


@pytest.mark.parametrize(
    ("timing", "field"),
    [
        (Timing(cron="61 * * * *", anchor_at=EPOCH), "cron"),
        (Timing(cron="@daily", tz="Europe/Atlantis", anchor_at=EPOCH), "tz"),
        (Timing(cron="@daily", tz="../etc/passwd", anchor_at=EPOCH), "tz"),
        (Timing(cron="@daily", tz="Europe", anchor_at=EPOCH), "tz"),
        (every(60, start_at=EPOCH, end_at=EPOCH - s(1)), "end_at"),
    ],
)
def test_what_can_not_tick_is_said_by_field(timing: Timing, field: str) -> None:
    with pytest.raises(BadSchedule) as error:
        timing.check()
    assert error.value.field == field
