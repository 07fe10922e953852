"""What `onceonly-jobs runs watch` draws, again and again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from onceonly_jobs.cli.runs import at, attempts, line, took, waited
from onceonly_jobs.cli.tables import shown
from onceonly_jobs.services import insights
from onceonly_jobs.store.database import Database, unreachable
from onceonly_jobs.store.listing import MOST_COUNTED, Filter, ListedRun, Wanted

ENDED_SHOWN_S = 60
"""For how long a run that has ended stays in the table."""
BAR_WIDTH = 24
FRAME_ROWS = 6
COUNTED: tuple[Wanted, ...] = ("in_progress", "queued", "unknown")
COLOURS = {
    "in_progress": "cyan",
    "queued": "yellow",
    "unknown": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "bright_black",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What there was at one moment."""

    counts: dict[str, int]
    runs: list[ListedRun]


class Watch:
    """Looks at the runs that match, every interval_s seconds, for ever."""

    def __init__(self, db: Database, wanted: Filter, interval_s: float) -> None:
        self._db = db
        self._wanted = wanted
        self._interval_s = interval_s

    def table(self) -> None:
        """A table that stays where it is and changes."""
        console = Console(highlight=False)
        with Live(Text("looking ..."), console=console, auto_refresh=False) as live:
            while True:
                live.update(self._drawn(max(1, console.height - FRAME_ROWS)), refresh=True)
                time.sleep(self._interval_s)

    def lines(self) -> None:
        """A line for each change."""
        before: dict[tuple[str, str], tuple[object, ...]] = {}
        while True:
            now: dict[tuple[str, str], tuple[object, ...]] = {}
            for run in reversed(self._look(500).runs):
                name, stands = (
                    (run.tenant_id, run.key),
                    (run.state, run.attempt, run.progress, run.error_code),
                )
                now[name] = stands
                if before.get(name) != stands:
                    done = None if run.progress is None else json.dumps(run.progress, ensure_ascii=False)
                    error = run.error_code if run.done_at else None
                    line(run.read_at, run.key, run.state, run.job, attempts(run), took(run), done, error)
            before = now
            time.sleep(self._interval_s)

    def _look(self, rows: int) -> Look:
        counts: dict[str, int] = {}
        going_on: list[ListedRun] = []
        for state in COUNTED:
            wanted, left = replace(self._wanted, state=state), rows - len(going_on)
            counts[state], page = self._db.run(insights.list_runs, wanted, left, 0)
            going_on += page
        _, latest = self._db.run(insights.list_runs, self._wanted, rows, 0)
        ended = [run for run in latest if _just_ended(run)]
        ended.sort(key=lambda run: run.done_at or run.read_at, reverse=True)
        return Look(counts, [*going_on, *ended][:rows])

    def _drawn(self, rows: int) -> Group:
        try:
            look = self._look(rows)
        except DBAPIError as error:
            if not unreachable(error):
                raise
            return Group(Text("the database does not answer; trying again", style="red"))
        return Group(_counts(look), Text(), _rows(look.runs, tenants=self._wanted.tenant_id is None))


def _just_ended(run: ListedRun) -> bool:
    return run.done_at is not None and run.read_at - run.done_at < timedelta(seconds=ENDED_SHOWN_S)


def _counts(look: Look) -> Text:
    text = Text()
    for state, count in look.counts.items():
        many = f"{count}+" if count == MOST_COUNTED else str(count)
        text.append(f"{many} {state.replace('_', ' ')}", style=COLOURS[state] if count else "bright_black")
        text.append("   ")
    if look.runs:
        text.append(f"{at(look.runs[0].read_at)} UTC", style="bright_black")
    return text


def _rows(runs: list[ListedRun], *, tenants: bool) -> Table:
    table = Table(box=None, pad_edge=False, expand=False)
    for name in ("tenant", "key") if tenants else ("key",):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=44)
    for name in ("job", "state", "attempt", "waited", "took"):
        table.add_column(name, no_wrap=True)
    table.add_column("progress", overflow="ellipsis", no_wrap=True)
    for run in runs:
        names = [shown(run.tenant_id), shown(run.key)] if tenants else [shown(run.key)]
        state = Text(run.state.replace("_", " "), style=COLOURS.get(run.state, ""))
        cells = [shown(run.job), state, *map(shown, (attempts(run), waited(run), took(run)))]
        table.add_row(*names, *cells, _progress(run))
    return table


def _progress(run: ListedRun) -> Table | Text:
    """A bar for a fraction, text for anything else; of a run that went wrong, why."""
    if run.error_code is not None and run.state in ("failed", "cancelled", "unknown"):
        return Text(shown(run.error_message or run.error_code).plain, style="red")
    if run.progress is None or run.state == "queued":  # what an attempt has reported that is over
        return Text("")
    fraction = 1.0 if run.state == "completed" else run.progress.get("fraction")
    if isinstance(fraction, int | float) and 0 <= fraction <= 1:
        return _bar(float(fraction))
    return shown(json.dumps(run.progress, ensure_ascii=False))


def _bar(fraction: float) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=1.0, completed=fraction, width=BAR_WIDTH), f"{fraction:.0%}")
    return grid
