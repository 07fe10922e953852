"""Cron against an independent computation: every minute of the time line is looked at, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onceonly_jobs.domain.cron import MACROS, Cron, expanded

MINUTE = timedelta(minutes=1)

# A day in which the clock is set, and the zone: forward, back, by half an hour, over midnight, by a whole day.
CHANGES = [
    ("Europe/Kyiv", datetime(2026, 3, 29, tzinfo=UTC)),
    ("Europe/Kyiv", datetime(2026, 10, 25, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 2, 17, tzinfo=UTC)),
    ("Asia/Beirut", datetime(2022, 3, 26, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 10, 25, tzinfo=UTC)),
    ("UTC", datetime(2026, 2, 28, tzinfo=UTC)),
]


@dataclass(frozen=True)
class Field:
    """A field of an expression, and which values it means: said by whoever made it, not parsed."""

    text: str
    values: frozenset[int]


def fields(first: int, last: int) -> st.SearchStrategy[Field]:
    every = frozenset(range(first, last + 1))
    number = st.integers(first, last)
    steps = st.integers(1, last).map(lambda n: Field(f"*/{n}", frozenset(range(first, last + 1, n))))
    lists = st.sets(number, min_size=1, max_size=4).map(
        lambda chosen: Field(",".join(map(str, sorted(chosen))), frozenset(chosen))
    )
    ranges = st.tuples(number, number).map(
        lambda ends: Field(f"{min(ends)}-{max(ends)}", frozenset(range(min(ends), max(ends) + 1)))
    )
    return st.one_of(st.just(Field("*", every)), steps, lists, ranges)


@dataclass(frozen=True)
class Expression:
    minute: Field
    hour: Field
    weekday: Field

    @property
    def text(self) -> str:
        return f"{self.minute.text} {self.hour.text} * * {self.weekday.text}"

    @property
    def fixed(self) -> bool:
        return not (self.minute.text.startswith("*") or self.hour.text.startswith("*"))

    def shown(self, wall: datetime) -> bool:
        return (
            wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.isoweekday() % 7 in self.weekday.values
        )


EXPRESSIONS = st.builds(Expression, minute=fields(0, 59), hour=fields(0, 23), weekday=fields(0, 6))
NIGHTLY = Expression(
    Field("30", frozenset({30})), Field("0-3", frozenset({0, 1, 2, 3})), Field("*", frozenset(range(7)))
)
HALF_HOURLY = Expression(
    Field("*/30", frozenset({0, 30})), Field("*", frozenset(range(24))), Field("*", frozenset(range(7)))
)
EVEN_HOURS = Expression(
    Field("0", frozenset({0})), Field("*/2", frozenset(range(0, 24, 2))), Field("0", frozenset({0}))
)


def matches(expression: Expression, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """The rule of Debian's cron, minute by minute: what the clock shows, and what it has skipped or shows again."""
    found: set[datetime] = set()
    seen: set[datetime] = set()
    latest = None
    at = start - timedelta(days=2)
    while at <= end:
        wall = at.astimezone(zone).replace(tzinfo=None, fold=0)
        if expression.fixed:
            jumped_over = [] if latest is None else list(minutes(latest + MINUTE, wall))
            if any(expression.shown(skipped) for skipped in jumped_over):
                found.add(at)
            if expression.shown(wall) and wall not in seen:
                found.add(at)
            seen.add(wall)
            latest = wall if latest is None else max(latest, wall)
        elif expression.shown(wall):
            found.add(at)
        at += MINUTE
    return sorted(at for at in found if start <= at <= end)


def minutes(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += MINUTE


def after(cron: Cron, start: datetime, end: datetime) -> list[datetime]:
    found = []
    at = cron.next_after(start - timedelta(seconds=1))
    while at is not None and at <= end:
        found.append(at)
        at = cron.next_after(at)
    return found


def before(cron: Cron, start: datetime, end: datetime) -> list[datetime]:
    found = []
    at = cron.previous(end)
    while at is not None and at >= start:
        found.append(at)
        at = cron.previous(at - timedelta(microseconds=1))
    return found[::-1]


@settings(max_examples=25, deadline=None)
@given(EXPRESSIONS, st.sampled_from(CHANGES))
@example(NIGHTLY, CHANGES[0])
@example(NIGHTLY, CHANGES[1])
@example(HALF_HOURLY, CHANGES[1])
@example(NIGHTLY, CHANGES[2])
@example(NIGHTLY, CHANGES[5])
@example(HALF_HOURLY, CHANGES[6])
@example(EVEN_HOURS, CHANGES[8])
@example(EVEN_HOURS, CHANGES[9])
def test_every_match_around_a_clock_change_is_found_both_ways(
    expression: Expression, change: tuple[str, datetime]
) -> None:
    name, day = change
    zone, start, end = ZoneInfo(name), day, day + timedelta(days=1.5)
    cron = Cron(expression.text, zone)
    expected = matches(expression, zone, start, end)
    assert after(cron, start, end) == expected
    assert before(cron, start, end) == expected


@settings(max_examples=25, deadline=None)
@given(EXPRESSIONS, st.sampled_from(CHANGES), st.integers(0, 36 * 3600))
def test_from_any_moment_the_neighbours_are_right(
    expression: Expression, change: tuple[str, datetime], offset_s: int
) -> None:
    name, day = change
    zone, at = ZoneInfo(name), day + timedelta(seconds=offset_s)
    cron = Cron(expression.text, zone)
    all_ = matches(expression, zone, day - timedelta(days=1), day + timedelta(days=4))
    later, earlier = [m for m in all_ if m > at], [m for m in all_ if m <= at]
    if later:
        assert cron.next_after(at) == later[0]
    if earlier:
        assert cron.previous(at) == earlier[-1]


def local(expression: str, zone: str, start: datetime, hours: float) -> list[str]:
    cron = Cron(expression, ZoneInfo(zone))
    return [
        at.astimezone(ZoneInfo(zone)).strftime("%H:%M:%S%z")
        for at in after(cron, start, start + timedelta(hours=hours))
    ]


NIGHT_OF_MARCH = datetime(2026, 3, 28, 23, tzinfo=UTC)  # 01:00 in Kyiv; at 03:00 it becomes 04:00
NIGHT_OF_OCTOBER = datetime(2026, 10, 24, 22, tzinfo=UTC)  # 01:00 in Kyiv; at 04:00 it becomes 03:00


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        # The skipped hour: fixed times once, right after the jump; the others when the clock shows them.
        ("30 3 * * *", NIGHT_OF_MARCH, ["04:00:00+0300"]),
        ("0,30 3 * * *", NIGHT_OF_MARCH, ["04:00:00+0300"]),
        ("0 3,4 * * *", NIGHT_OF_MARCH, ["04:00:00+0300"]),
        ("30 * * * *", NIGHT_OF_MARCH, ["01:30:00+0200", "02:30:00+0200", "04:30:00+0300", "05:30:00+0300"]),
        # The repeated one: fixed times once, in the first pass; the others in both.
        ("30 3 * * *", NIGHT_OF_OCTOBER, ["03:30:00+0300"]),
        (
            "30 * * * *",
            NIGHT_OF_OCTOBER,
            ["01:30:00+0300", "02:30:00+0300", "03:30:00+0300", "03:30:00+0200"],
        ),
        # Six fields: seconds first, and the same rule.
        ("15 30 3 * * *", NIGHT_OF_MARCH, ["04:00:00+0300"]),
        ("15 30 3 * * *", NIGHT_OF_OCTOBER, ["03:30:15+0300"]),
        ("*/20 30 3 * * *", NIGHT_OF_MARCH, ["04:00:00+0300"]),
    ],
)
def test_clock_changes_by_example(expression: str, start: datetime, expected: list[str]) -> None:
    assert local(expression, "Europe/Kyiv", start, 4) == expected


BERLIN_MARCH = datetime(2026, 3, 29, 0, tzinfo=UTC)  # 01:00; at 02:00 it becomes 03:00
BERLIN_OCTOBER = datetime(2026, 10, 24, 23, tzinfo=UTC)  # 01:00; at 03:00 it becomes 02:00
NEW_YORK_MARCH = datetime(2026, 3, 8, 6, tzinfo=UTC)  # 01:00; at 02:00 it becomes 03:00
NEW_YORK_NOVEMBER = datetime(2026, 11, 1, 5, tzinfo=UTC)  # 01:00; at 02:00 it becomes 01:00


@pytest.mark.parametrize(
    ("zone", "expression", "start", "expected"),
    [
        ("Europe/Berlin", "30 2 * * *", BERLIN_MARCH, ["03:00:00+0200"]),
        ("Europe/Berlin", "0 3 * * *", BERLIN_MARCH, ["03:00:00+0200"]),
        ("Europe/Berlin", "30 2,3 * * *", BERLIN_MARCH, ["03:00:00+0200", "03:30:00+0200"]),
        ("Europe/Berlin", "0 * * * *", BERLIN_MARCH, ["01:00:00+0100", "03:00:00+0200", "04:00:00+0200"]),
        ("Europe/Berlin", "30 2 * * *", BERLIN_OCTOBER, ["02:30:00+0200"]),
        ("Europe/Berlin", "0 3 * * *", BERLIN_OCTOBER, ["03:00:00+0100"]),
        (
            "Europe/Berlin",
            "0 * * * *",
            BERLIN_OCTOBER,
            ["01:00:00+0200", "02:00:00+0200", "02:00:00+0100", "03:00:00+0100"],
        ),
        ("America/New_York", "30 2 * * *", NEW_YORK_MARCH, ["03:00:00-0400"]),
        (
            "America/New_York",
            "0 * * * *",
            NEW_YORK_MARCH,
            ["01:00:00-0500", "03:00:00-0400", "04:00:00-0400"],
        ),
        ("America/New_York", "30 1 * * *", NEW_YORK_NOVEMBER, ["01:30:00-0400"]),
        ("America/New_York", "59 1 * * SUN", NEW_YORK_NOVEMBER, ["01:59:00-0400"]),
        (
            "America/New_York",
            "0 * * * *",
            NEW_YORK_NOVEMBER,
            ["01:00:00-0400", "01:00:00-0500", "02:00:00-0500", "03:00:00-0500"],
        ),
    ],
)
def test_clock_changes_of_berlin_and_new_york(
    zone: str, expression: str, start: datetime, expected: list[str]
) -> None:
    hours = len(expected) - 1 if expression == "0 * * * *" else 3
    assert local(expression, zone, start, hours) == expected


def test_every_second_is_every_second() -> None:
    start = datetime(2026, 10, 25, 0, 59, 58, tzinfo=UTC)  # the second pass begins at 01:00 UTC
    found = after(Cron("* * * * * *", ZoneInfo("Europe/Kyiv")), start, start + timedelta(seconds=4))
    assert found == [start + timedelta(seconds=n) for n in range(5)]


@pytest.mark.parametrize(
    ("expression", "at", "following"),
    [
        ("0 9 * * MON-FRI", "2026-03-06T12:00", "2026-03-09T09:00"),
        ("0 0 1 jan,jul *", "2026-03-06T12:00", "2026-07-01T00:00"),
        ("0 0 L * *", "2026-02-10T00:00", "2026-02-28T00:00"),
        ("0 0 * * MON#2", "2026-03-01T00:00", "2026-03-09T00:00"),
        ("@hourly", "2026-03-06T12:00", "2026-03-06T13:00"),
        ("@daily", "2026-03-06T12:00", "2026-03-07T00:00"),
        ("@weekly", "2026-03-06T12:00", "2026-03-08T00:00"),
        ("@monthly", "2026-03-06T12:00", "2026-04-01T00:00"),
        ("@yearly", "2026-03-06T12:00", "2027-01-01T00:00"),
        ("0 0 29 2 *", "2026-03-06T12:00", "2028-02-29T00:00"),
    ],
)
def test_names_macros_and_rare_days(expression: str, at: str, following: str) -> None:
    instant = datetime.fromisoformat(at).replace(tzinfo=UTC)
    assert Cron(expression, ZoneInfo("UTC")).next_after(instant) == datetime.fromisoformat(following).replace(
        tzinfo=UTC
    )


@pytest.mark.parametrize("macro", MACROS)
def test_every_macro_is_five_fields(macro: str) -> None:
    assert len(expanded(macro.upper()).split()) == 5


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "no cron expression"),
        ("* * * *", "no cron expression"),
        ("* * * * * * *", "no cron expression"),
        ("61 * * * *", "Bad minute"),
        ("* 24 * * *", "Bad hour"),
        ("* * * * FUNDAY", "Bad day-of-week"),
        ("0 0 31 2 *", "Bad day-of-month"),
        ("@reboot", "unknown macro"),
        ("0 0 30-31 2 *", "Bad day-of-month"),
    ],
)
def test_what_is_no_expression_is_said(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Cron(expression, ZoneInfo("UTC"))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/,-#LW@ MONFRI²", max_size=30))
def test_any_text_is_an_expression_or_a_readable_refusal(text: str) -> None:
    try:
        cron = Cron(text, ZoneInfo("Europe/Kyiv"))
    except ValueError as error:
        told = str(error)
    else:
        found = cron.next_after(datetime(2026, 1, 1, tzinfo=UTC))
        told = "never" if found is None else found.isoformat()
    assert told
