"""`onceonly-jobs runs list | show | tail | watch`: what runs there are, and what happens to them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from onceonly_jobs.cli.tables import PIPED_WIDTH, shown
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.timelines import Standing
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import insights
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.events import Event, FeedEvent
from onceonly_jobs.store.listing import Filter, ListedRun, Wanted

runs = typer.Typer(help="Runs: which there are, and what happens to them.", no_args_is_help=True)

REREAD_S = 0.5
PAGE = 500

Tenant = Annotated[str, typer.Option(help="Tenant that the runs belong to.")]
State = Annotated[
    str | None,
    typer.Option(
        help="queued, in_progress, completed, failed, cancelled, unknown, or active: not at its end."
    ),
]
Job = Annotated[str | None, typer.Option(help="Only runs of this job, or calls of this tool.")]
Agent = Annotated[str | None, typer.Option(help="Only runs of this agent.")]
Key = Annotated[str, typer.Option(help="Only keys that begin like this.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(runs, name="runs")


@runs.command("list")
def list_runs(
    state: State = None,
    job: Job = None,
    agent: Agent = None,
    key: Key = "",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's runs.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the latest so many.")] = 0,
) -> None:
    """Show runs, latest key first."""
    wanted = wanted_runs(tenant, state, job, agent, key)
    total, found = open_database().run(insights.list_runs, wanted, limit, offset)
    table = Table("key", "tenant", "state", "job", "agent", "attempt", "since", box=None, pad_edge=False)
    for name in ("waited", "took", "error"):
        table.add_column(name)
    for run in found:
        cells = [
            run.key,
            run.tenant_id,
            run.state,
            run.job,
            run.agent_id,
            attempts(run),
            at(run.first_seen_at),
        ]
        table.add_row(*map(shown, [*cells, waited(run), took(run), run.error_code if run.done_at else None]))
    console().print(table)
    if total > len(found):
        typer.echo(f"{len(found)} of {total}", err=True)


@runs.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A run's key, or the id of a timeline.")],
    tenant: Tenant = "default",
) -> None:
    """Show a run and its timeline, and how long each step took."""
    db = open_database()
    run = db.run(insights.run_by_key, tenant, name)
    events = list(_all_events(db, tenant, run.run_id if run else name))
    if run is None and not events:
        raise ConfigError(f"no run and no timeline named {name!r} in tenant {tenant!r}")
    out = console()
    if run is not None:
        out.print(_details(run))
        out.print()
        if run.errors:
            out.print(_errors(run.errors))
            out.print()
    out.print(timeline(events))


def _details(run: ListedRun) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    facts: dict[str, Any] = {
        "key": run.key,
        "run id": None if run.run_id == run.key else run.run_id,
        "state": run.state,
        "job": run.job,
        "agent": run.agent_id,
        "attempt": attempts(run),
        "failures": f"{run.failures} of {run.max_attempts}" if run.failures else None,
        "crashes": f"{run.crashes} of {run.max_crashes}" if run.crashes else None,
        "progress": None if run.progress is None else json.dumps(run.progress, ensure_ascii=False),
        "error": run.error_code,
        "message": run.error_message,
        "since": at(run.first_seen_at),
        "waited": waited(run),
        "took": took(run),
        "in all": seconds(((run.done_at or run.read_at) - run.first_seen_at).total_seconds()),
    }
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, shown(value))
    return table


def _errors(errors: list[dict[str, Any]]) -> Table:
    """Each start that ended badly, oldest first."""
    table = Table("attempt", "ended", "after", "as", "worker", "pid", "", box=None, pad_edge=False)
    for error in errors:
        ended, started = (datetime.fromisoformat(error[name]) for name in ("at", "started_at"))
        after = seconds((ended - started).total_seconds())
        why = error.get("message") or error["code"]
        facts = [
            error["attempt"],
            at(ended),
            after,
            error["kind"],
            error.get("worker"),
            error.get("pid"),
            why,
        ]
        table.add_row(*map(shown, facts))
    return table


def timeline(events: list[Event]) -> Table:
    """A row per event, with how long each took."""
    table = Table("time", "after", "event", "status", "took", "", box=None, pad_edge=False)
    for event in events:
        after = seconds((event.at - events[0].at).total_seconds())
        table.add_row(
            *map(shown, [at(event.at), f"+{after}", event.type, event.status, lasted(event), told(event)])
        )
    return table


def _all_events(db: Database, tenant: str, run_id: str) -> Iterator[Event]:
    offset = 0
    while page := db.run(insights.run_events, tenant, run_id, PAGE, offset):
        yield from page
        offset += len(page)


@runs.command("tail")
def tail(
    name: Annotated[
        str | None, typer.Argument(help="A run's key, or the id of a timeline. Default: all that happens.")
    ] = None,
    tenant: Tenant = "default",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on after the run has finished.")] = False,
) -> None:
    """Show events as they happen: of a run until it has finished, or of the whole tenant. Ctrl-C ends it."""
    db = open_database()
    try:
        if name is None:
            _tail_feed(db, tenant)
        else:
            run = db.run(insights.run_by_key, tenant, name)
            _tail_run(db, tenant, run.run_id if run else name, follow=follow)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _tail_run(db: Database, tenant: str, run_id: str, *, follow: bool) -> None:
    standing, last, known = Standing(), 0, -1
    while True:
        total, events = db.run(insights.news, tenant, run_id, last, known, PAGE)
        for event in events:
            standing.see(event.type, (event.data or {}).get("key"))
            line(event.at, event.type, event.status, lasted(event), told(event))
            last = event.id
        known = total if len(events) < PAGE else -1
        if standing.over and not follow and known == total:
            return
        if known == total:
            time.sleep(REREAD_S)


def _tail_feed(db: Database, tenant: str) -> None:
    # The latest page is read each time: what is committed late has a smaller id than its neighbours.
    told_of: set[int] = set()
    floor = max(0, db.run(insights.feed_end, tenant))
    while True:
        events: list[FeedEvent] = db.run(insights.feed_news, tenant, floor, sorted(told_of), PAGE)
        for item in events:
            line(item.at, item.type, item.status, item.key, item.tool, item.agent_id, item.message)
        told_of |= {item.id for item in events}
        if len(told_of) > PAGE:
            floor = sorted(told_of)[len(told_of) // 2]
            told_of = {number for number in told_of if number > floor}
        if len(events) < PAGE:
            time.sleep(REREAD_S)


@runs.command("watch")
def watch(
    job: Job = None,
    agent: Agent = None,
    key: Key = "",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's runs.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show what runs now, how far it is, and what has just ended. Ctrl-C ends it.

    Where the output is no terminal, it is a line per change instead of a table.
    """
    from onceonly_jobs.cli.watching import Watch

    watch = Watch(open_database(), wanted_runs(tenant, None, job, agent, key), interval)
    try:
        if sys.stdout.isatty():
            watch.table()
        else:
            watch.lines()
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def open_database() -> Database:
    return Database(Settings.load().require_database_url(), pool_size=1)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def wanted_runs(
    tenant: str | None, state: str | None, job: str | None, agent: str | None, key: str
) -> Filter:
    """The filter that the options name. Raises ConfigError for a state that there is not."""
    known: dict[str, Wanted] = {
        "queued": "queued",
        "in_progress": "in_progress",
        "completed": "completed",
        "failed": "failed",
        "cancelled": "cancelled",
        "unknown": "unknown",
        "active": "active",
    }
    if state is not None and state not in known:
        raise ConfigError(f"--state {state}: one of {', '.join(known)}")
    return Filter(
        tenant_id=tenant,
        state=None if state is None else known[state],
        job=job,
        agent_id=agent,
        key_prefix=key,
    )


def line(when: datetime, *words: Any) -> None:
    """One line of plain output, at once."""
    typer.echo("  ".join([at(when), *(shown(word).plain for word in words if word is not None)]))
    sys.stdout.flush()


def at(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def attempts(run: ListedRun) -> str | None:
    """`2 of 5`; nothing for a caller's own lease."""
    return f"{run.attempt} of {run.max_attempts}" if run.owner == "server" else None


def waited(run: ListedRun) -> str | None:
    """How long the latest attempt waited for a worker, or has waited by now."""
    if run.due_at is None:
        return None
    # A run that was queued again has the start of its last attempt still.
    started = run.started_at if run.state != "queued" else None
    until = started or run.done_at or run.read_at
    return seconds(max(0.0, (until - run.due_at).total_seconds()))


def took(run: ListedRun) -> str | None:
    """How long the latest attempt took, or has taken by now."""
    if run.started_at is None or run.state == "queued":
        return None
    return seconds(((run.done_at or run.read_at) - run.started_at).total_seconds())


def lasted(event: Event) -> str | None:
    return None if event.duration_ms is None else seconds(event.duration_ms / 1000)


def seconds(value: float) -> str:
    """A duration in the two largest units that matter: `0.25s`, `12.3s`, `5m 7s`, `2h 3m`, `3d 4h`."""
    if value < 10:
        return f"{value:.2f}s"
    if value < 60:
        return f"{value:.1f}s"
    minutes, hours, days = int(value) // 60, int(value) // 3600, int(value) // 86_400
    if hours < 1:
        return f"{minutes}m {int(value) % 60}s"
    return f"{hours}h {minutes % 60}m" if days < 1 else f"{days}d {hours % 24}h"


def told(event: Event) -> str | None:
    """What an event has to say, besides its type."""
    data = event.data or {}
    words = [event.step, event.tool if event.type.startswith("tool_") else None, event.message]
    if event.type == "progress":
        words.append(json.dumps(data, ensure_ascii=False))
    else:
        if event.type == "run_queued" and isinstance(schedule := data.get("schedule"), str):
            words.append(f"schedule {schedule}")
        if (due_in_ms := data.get("due_in_ms")) and isinstance(due_in_ms, int):
            words.append(f"due in {seconds(due_in_ms / 1000)}")
    return " ".join(word for word in words if word) or None
