"""`onceonly-jobs dead list | show | replay | discard`: runs that failed for good, and what becomes of them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from onceonly_jobs.cli.runs import at, console, open_database, timeline
from onceonly_jobs.cli.tables import show_table, shown
from onceonly_jobs.cli.unknown import actor
from onceonly_jobs.errors import ConfigError, Refusal
from onceonly_jobs.services import dead as service
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.dead import DeadDetails, DeadLetter, Wanted

dead = typer.Typer(help="Dead letters: runs that failed for good.", no_args_is_help=True)

BATCH = 200

Tenant = Annotated[str, typer.Option(help="Tenant that the run belongs to.")]
OfTenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Task = Annotated[str | None, typer.Option(help="Only runs of this job.")]
Agent = Annotated[str | None, typer.Option(help="Only runs of this agent.")]
Decision = Annotated[int | None, typer.Option(help="As listed: this failure of the run, and no later one.")]
Reason = Annotated[str | None, typer.Option(help="Why, for its timeline.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(dead, name="dead")


@dead.command("list")
def list_dead(
    task: Task = None,
    agent: Agent = None,
    tenant: OfTenant = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the oldest so many.")] = 0,
) -> None:
    """Show dead letters, oldest first."""
    wanted = Wanted(tenant_id=tenant, job=task, agent_id=agent)
    total, letters = open_database().run(service.letters, wanted, limit, offset)
    columns = ["since", "tenant", "job", "agent", "starts", "decision", "key", "error", "message"]
    show_table(columns, [_row(letter) for letter in letters])
    if total > len(letters):
        typer.echo(f"{len(letters)} of {total}", err=True)


def _row(letter: DeadLetter) -> tuple[Any, ...]:
    return (
        letter.done_at,
        letter.tenant_id,
        letter.job,
        letter.agent_id,
        letter.attempt,
        letter.decision_id,
        letter.key,
        letter.error_code,
        letter.message,
    )


@dead.command("show")
def show(
    key: Annotated[str, typer.Argument(help="The run's key, from `dead list`.")], tenant: Tenant = "default"
) -> None:
    """Show a dead letter: what it was asked for, each start that did not end well, and its latest events."""
    try:
        details, events = open_database().run(service.show, tenant, key)
    except Refusal:
        raise ConfigError(f"no dead letter {key!r} in tenant {tenant!r}") from None
    out = console()
    out.print(_facts(details))
    for title, table in (("starts", _starts(details)), ("timeline", timeline(events))):
        out.print(f"\n{title}", style="bold")
        out.print(table)


def _facts(details: DeadDetails) -> Table:
    letter = details.letter
    facts: dict[str, Any] = {
        "key": letter.key,
        "run id": None if letter.run_id == letter.key else letter.run_id,
        "job": letter.job,
        "queue": letter.queue,
        "agent": letter.agent_id,
        "schedule": letter.schedule,
        "starts": letter.attempt,
        "failures": f"{letter.failures} of {letter.max_attempts}",
        "crashes": letter.crashes,
        "error": letter.error_code,
        "message": letter.message,
        "since": at(letter.done_at),
        "kept until": at(letter.retain_until_at),
        "decision": letter.decision_id,
        "metadata": _json(details.metadata),
        "result": _json(details.result),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, shown(value))
    return table


def _starts(details: DeadDetails) -> Table:
    names = ("attempt", "at", "kind", "code", "worker", "pid", "signal", "message")
    table = Table(*names, box=None, pad_edge=False)
    for error in details.errors:
        table.add_row(*(shown(error.get(name)) for name in names))
    return table


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


@dead.command("replay")
def replay(
    key: Annotated[str | None, typer.Argument(help="The run's key, from `dead list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All there are now, in batches.")] = False,
    task: Task = None,
    agent: Agent = None,
    decision: Decision = None,
    tenant: OfTenant = None,
) -> None:
    """Queue a dead letter again, or all of them, with all of their attempts."""
    db = open_database()
    if key is None:
        wanted = _all(every, decision, tenant, task, agent)
        typer.echo(f"{_replay_all(db, wanted)} replayed")
        return
    _one(every, task, agent)
    try:
        replayed = db.run(service.replay, tenant or "default", actor(), key, decision)
    except Refusal as refusal:
        raise ConfigError(f"{key}: {refusal}") from None
    typer.echo(f"{key}: replayed by {replayed.fate.actor}, decision {replayed.fate.decision_id}")


def _replay_all(db: Database, wanted: Wanted) -> int:
    until, count = db.run(service.moment), 0
    while batch := db.run(service.replay_batch, wanted, until, BATCH, actor()):
        count += len(batch)
    return count


@dead.command("discard")
def discard(
    key: Annotated[str | None, typer.Argument(help="The run's key, from `dead list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All there are now, in batches.")] = False,
    task: Task = None,
    agent: Agent = None,
    reason: Reason = None,
    decision: Decision = None,
    tenant: OfTenant = None,
) -> None:
    """Take a dead letter off the list, or all of them. They stay failed until their retention is over."""
    db = open_database()
    if key is None:
        wanted = _all(every, decision, tenant, task, agent)
        typer.echo(f"{_discard_all(db, wanted, reason)} discarded")
        return
    _one(every, task, agent)
    try:
        fate = db.run(service.discard, tenant or "default", actor(), key, reason, decision)
    except Refusal as refusal:
        raise ConfigError(f"{key}: {refusal}") from None
    typer.echo(f"{key}: discarded by {fate.actor}")


def _discard_all(db: Database, wanted: Wanted, reason: str | None) -> int:
    until, count = db.run(service.moment), 0
    while batch := db.run(service.discard_batch, wanted, until, BATCH, actor(), reason):
        count += batch
    return count


def _all(
    every: bool, decision: int | None, tenant: str | None, task: str | None, agent: str | None
) -> Wanted:
    """Raises ConfigError unless all are asked for by name."""
    if not every or decision is not None:
        raise ConfigError("give a key, or --all (with --task, --agent, --tenant to narrow it down)")
    return Wanted(tenant_id=tenant, job=task, agent_id=agent)


def _one(every: bool, task: str | None, agent: str | None) -> None:
    if every or task is not None or agent is not None:
        raise ConfigError("--all, --task and --agent go without a key")
