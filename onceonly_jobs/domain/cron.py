"""Cron expressions on the clock of a time zone: which instants match.

cronsim parses an expression and finds matching wall times; the wall times are put on the time line here, by the
rule of Debian's cron:

- An expression at fixed hours and minutes fires once per wall time. What falls into a skipped hour fires right after
  the jump; of a repeated hour, only the first one counts.
- One whose minute or hour field begins with `*` follows real time: nothing in a skipped hour, both passes of a
  repeated one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import takewhile
from operator import le
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

SECOND = timedelta(seconds=1)

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class WallClock:
    """Wall times of a time zone, and the instants that they name. Wall times are naive, instants UTC."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone

    def wall(self, instant: datetime) -> tuple[datetime, bool]:
        """What the clock shows at an instant, and whether it shows that for the second time."""
        local = instant.astimezone(self._zone)
        return local.replace(tzinfo=None, fold=0), bool(local.fold)

    def shift(self, wall: datetime) -> timedelta:
        """By how much the clock is set back over this wall time; negative where it is set forward, mostly zero."""
        return self._offset(wall, 0) - self._offset(wall, 1)

    def instants(self, wall: datetime) -> list[datetime]:
        """When the clock shows this: once, twice in a repeated hour, never in a skipped one."""
        first, second = wall - self._offset(wall, 0), wall - self._offset(wall, 1)
        shown = {first, second} if first <= second else set()
        return sorted(instant.replace(tzinfo=UTC) for instant in shown)

    def jump(self, wall: datetime) -> datetime:
        """The instant at which the clock is set forward over a skipped, or back over a repeated, wall time."""
        wall = wall.replace(microsecond=0)
        sides = sorted((wall - self._offset(wall, 0), wall - self._offset(wall, 1)))
        before, after = (side.replace(tzinfo=UTC) for side in sides)
        old = before.astimezone(self._zone).utcoffset()
        while after - before > SECOND:
            middle = before + timedelta(seconds=(after - before) // SECOND // 2)
            if middle.astimezone(self._zone).utcoffset() == old:
                before = middle
            else:
                after = middle
        return after

    def _offset(self, wall: datetime, fold: int) -> timedelta:
        return wall.replace(tzinfo=self._zone, fold=fold).utcoffset() or timedelta()


class Cron:
    """A cron expression in a time zone.

    Raises ValueError, with a readable reason, for an expression that is none or that never matches.
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._fields = expanded(expression)
        self._clock = WallClock(zone)
        minute, hour = self._fields.split()[-5:-3]
        self._fixed = not (minute.startswith("*") or hour.startswith("*"))

    def next_after(self, instant: datetime) -> datetime | None:
        """The first match after an instant; None when there is none in sight."""
        wall, second = self._clock.wall(instant)
        candidates = self._fixed_from(wall) if self._fixed else self._real_from(wall, second)
        return next((match for match in candidates if match > instant), None)

    def previous(self, instant: datetime) -> datetime | None:
        """The last match up to and with an instant; None when there is none in sight."""
        wall, second = self._clock.wall(instant)
        candidates = self._fixed_back(wall) if self._fixed else self._real_back(wall, second)
        return next((match for match in candidates if match <= instant), None)

    def _fixed_from(self, wall: datetime) -> Iterator[datetime]:
        return (self._first(match) for match in self._walls(wall))

    def _fixed_back(self, wall: datetime) -> Iterator[datetime]:
        # In a second pass, what the clock is yet to show again has fired in the first.
        ahead = max(self._clock.shift(wall), timedelta())
        return (self._first(match) for match in self._walls_back(wall + ahead))

    def _first(self, wall: datetime) -> datetime:
        """When a fixed time fires."""
        instants = self._clock.instants(wall)
        return instants[0] if instants else self._clock.jump(wall)

    def _real_from(self, wall: datetime, second: bool) -> Iterator[datetime]:
        """Matches in order, from the first or second pass of what the clock shows."""
        if self._repeats(wall):
            start, end = self._repeated(wall)
            if not second:
                yield from self._pass(0, wall, end)
                wall = start - SECOND
            yield from self._pass(1, wall, end)
            wall = end - SECOND
        for match in self._walls(wall):
            if self._repeats(match):
                start, end = self._repeated(match)
                yield from self._pass(0, start - SECOND, end)
                yield from self._pass(1, start - SECOND, end)
                yield from self._real_from(end - SECOND, second=True)
                return
            yield from self._clock.instants(match)

    def _pass(self, number: int, after: datetime, end: datetime) -> Iterator[datetime]:
        """Matches of the first (0) or second (1) pass of a repeated hour."""
        return (self._clock.instants(match)[number] for match in self._walls(after, end))

    def _real_back(self, wall: datetime, second: bool) -> Iterator[datetime]:
        """Matches in reverse order, from the first or second pass of what the clock shows."""
        start = None
        if self._repeats(wall):
            start, end = self._repeated(wall)
            if second:
                again = takewhile(partial(le, start), self._walls_back(wall))
                yield from (self._clock.instants(match)[1] for match in again)
                wall = end - SECOND
        for match in self._walls_back(wall):
            if self._repeats(match) and (start is None or match < start):
                yield from self._real_back(match, second=True)
                return
            yield from self._clock.instants(match)[:1]

    def _repeats(self, wall: datetime) -> bool:
        return self._clock.shift(wall) > timedelta()

    def _repeated(self, wall: datetime) -> tuple[datetime, datetime]:
        """First wall time of the repeated hour around this one, and the first after it."""
        start, _ = self._clock.wall(self._clock.jump(wall))
        return start, start + self._clock.shift(wall)

    def _walls(self, after: datetime, before: datetime = datetime.max) -> Iterator[datetime]:
        """Matching wall times in order."""
        matches = CronSim(self._fields, after)
        while True:
            try:
                match = next(matches)
            except (StopIteration, OverflowError):
                return
            if match >= before:
                return
            yield match

    def _walls_back(self, from_: datetime) -> Iterator[datetime]:
        """Matching wall times in reverse order, `from_` included."""
        matches = CronSim(self._fields, from_.replace(microsecond=0) + SECOND, reverse=True)
        while True:
            try:
                yield next(matches)
            except (StopIteration, OverflowError):
                return


@lru_cache(maxsize=1024)
def expanded(expression: str) -> str:
    """The expression as five or six fields. Raises ValueError for one that is none, or never matches."""
    text = expression.strip().lower()
    if text.startswith("@"):
        if text not in MACROS:
            raise ValueError(f"{expression!r}: unknown macro; known are {', '.join(MACROS)}")
        return MACROS[text]
    try:
        next(CronSim(text, datetime(2000, 1, 1)))
    except CronSimError as error:
        fields = "minute hour day month weekday, or second before them"
        raise ValueError(f"{expression!r} is no cron expression ({fields}): {error}") from None
    except StopIteration:
        raise ValueError(f"{expression!r} never matches") from None
    return " ".join(text.split())
