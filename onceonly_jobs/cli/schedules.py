"""`onceonly-jobs schedules ...`: runs by cron expression, interval or at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from zoneinfo import ZoneInfo

import typer
from pydantic import BaseModel, ValidationError

from onceonly_jobs.cli.tables import show_table
from onceonly_jobs.cli.unknown import actor
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.schedules import (
    BackfillRequest,
    ScheduleFields,
    SchedulePatch,
    ScheduleRequest,
    TriggerRequest,
)
from onceonly_jobs.domain.schedules import BadSchedule, Definition
from onceonly_jobs.errors import ConfigError, Refusal
from onceonly_jobs.services import account, ticks
from onceonly_jobs.services import schedules as service
from onceonly_jobs.services.quota import Refused
from onceonly_jobs.services.ticks import Started
from onceonly_jobs.store.account import Caller
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.runs import Taken
from onceonly_jobs.store.schedules import Schedule
from onceonly_jobs.store.statement import Operation

schedules = typer.Typer(help="Runs by cron expression, interval or at a time.", no_args_is_help=True)

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

Name = Annotated[str, typer.Argument(help="The schedule's name.")]
Tenant = Annotated[str, typer.Option(help="Tenant that the schedule belongs to.")]
Task = Annotated[str | None, typer.Option(help="Job to run.")]
Cron = Annotated[str | None, typer.Option(help="Five fields, six (seconds first), or a macro like @daily.")]
Every = Annotated[int | None, typer.Option("--every", help="Seconds between ticks.")]
At = Annotated[str | None, typer.Option(help="Once, at this time (ISO 8601).")]
Tz = Annotated[str | None, typer.Option(help="IANA time zone. Default: UTC.")]
Start = Annotated[str | None, typer.Option("--start", help="No tick before this time.")]
End = Annotated[str | None, typer.Option("--end", help="No tick after this time.")]
Payload = Annotated[str | None, typer.Option(help="JSON object for the job.")]
Metadata = Annotated[str | None, typer.Option(help="JSON object of further metadata.")]
Agent = Annotated[str | None, typer.Option("--agent", help="Agent whose policy decides on each run.")]
Queue = Annotated[str | None, typer.Option(help="Celery queue. Default: the job's own.")]
Ttl = Annotated[int | None, typer.Option(help="Time limit of each run, in seconds.")]
Misfire = Annotated[str | None, typer.Option(help="skip, once (default) or catch_up.")]
Grace = Annotated[
    int | None, typer.Option("--misfire-grace", help="Seconds that a tick may be late without being missed.")
]
CatchUp = Annotated[int | None, typer.Option(help="How many missed ticks catch_up fires.")]
Jitter = Annotated[int | None, typer.Option("--jitter", help="Seconds over which runs are spread.")]
Overlap = Annotated[str | None, typer.Option(help="allow (default), skip or cancel_previous.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(schedules, name="schedules")


@schedules.command("add")
def add(
    name: Name,
    task: Task = None,
    cron: Cron = None,
    every_s: Every = None,
    at: At = None,
    tz: Tz = None,
    start_at: Start = None,
    end_at: End = None,
    payload: Payload = None,
    metadata: Metadata = None,
    agent_id: Agent = None,
    queue: Queue = None,
    ttl: Ttl = None,
    misfire: Misfire = None,
    misfire_grace_s: Grace = None,
    catch_up_limit: CatchUp = None,
    jitter_s: Jitter = None,
    overlap: Overlap = None,
    paused: Annotated[bool, typer.Option("--paused", help="Make it paused.")] = False,
    tenant: Tenant = "default",
) -> None:
    """Make a schedule, with one of --cron, --every and --at."""
    given = _given(locals())
    request = _checked(ScheduleRequest, {"name": name, "paused": paused, **given})
    settings = Settings.load()
    _tenant(settings, tenant)
    _show(_ask(settings, lambda: service.create(actor(), tenant, request, settings)))


@schedules.command("edit")
def edit(
    name: Name,
    task: Task = None,
    cron: Cron = None,
    every_s: Every = None,
    at: At = None,
    tz: Tz = None,
    start_at: Start = None,
    end_at: End = None,
    payload: Payload = None,
    metadata: Metadata = None,
    agent_id: Agent = None,
    queue: Queue = None,
    ttl: Ttl = None,
    misfire: Misfire = None,
    misfire_grace_s: Grace = None,
    catch_up_limit: CatchUp = None,
    jitter_s: Jitter = None,
    overlap: Overlap = None,
    clear: Annotated[
        list[str] | None, typer.Option(help="Field to set back to its default, like end_at. Repeatable.")
    ] = None,
    tenant: Tenant = "default",
) -> None:
    """Change what is given; the rest stays."""
    given = _given(locals())
    patch = _checked(SchedulePatch, {**dict.fromkeys(clear or []), **given})
    settings = Settings.load()
    _show(_ask(settings, lambda: service.change(actor(), tenant, name, patch, settings)))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the contract among a command's arguments that were given."""
    given = {field: arguments[field] for field in ScheduleFields.model_fields if arguments[field] is not None}
    for field in ("payload", "metadata"):
        if field in given:
            try:
                given[field] = json.loads(given[field])
            except ValueError as error:
                raise ConfigError(f"--{field} is not JSON: {error}") from None
    return given


def _checked(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, e['loc'])) or 'schedule'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ConfigError("; ".join(wrong)) from None


@schedules.command("list")
def list_schedules(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the first so many.")] = 0,
) -> None:
    """Show schedules by tenant and name."""
    total, page = _ask(Settings.load(), lambda: service.list_all(tenant, limit, offset))
    rows = [
        (
            s.tenant_id,
            s.name,
            s.status,
            _when(s.definition),
            s.definition.tz,
            s.next_tick_at,
            s.definition.task,
        )
        for s in page
    ]
    show_table(["tenant", "name", "status", "ticks", "tz", "next (UTC)", "job"], _utc(rows))
    if total > len(page):
        typer.echo(f"{len(page)} of {total}", err=True)


@schedules.command("show")
def show(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="How many of its ticks.")] = 10,
    tenant: Tenant = "default",
) -> None:
    """Show a schedule and what became of its latest ticks."""
    settings = Settings.load()
    _show(_ask(settings, lambda: service.find(tenant, name)))
    found = _ask(settings, lambda: ticks.latest(tenant, name, limit, 0))
    typer.echo()
    show_table(
        ["tick (UTC)", "state", "by", "key", "detail"],
        _utc([(tick.tick_at, tick.state, tick.source, tick.key, tick.detail) for tick in found]),
    )


@schedules.command("remove")
def remove(name: Name, tenant: Tenant = "default") -> None:
    """Remove a schedule and its history. Its runs stay."""
    _ask(Settings.load(), lambda: service.delete(actor(), tenant, name))
    typer.echo(f"{name}: removed")


@schedules.command("pause")
def pause(name: Name, tenant: Tenant = "default") -> None:
    """Stop its ticks until it is resumed."""
    _ask(Settings.load(), lambda: service.set_paused(actor(), tenant, name, True))
    typer.echo(f"{name}: paused")


@schedules.command("resume")
def resume(name: Name, tenant: Tenant = "default") -> None:
    """Let it go on with the first tick after now."""
    schedule = _ask(Settings.load(), lambda: service.set_paused(actor(), tenant, name, False))
    typer.echo(f"{name}: {schedule.status}, next tick {_at(schedule.next_tick_at)}")


@schedules.command("trigger")
def trigger(
    name: Name,
    id: Annotated[str | None, typer.Option(help="One run per id. Default: the current second.")] = None,
    tenant: Tenant = "default",
) -> None:
    """Run its job now."""
    settings = _settings()
    caller = _tenant(settings, tenant)
    trigger_id = _checked(TriggerRequest, {"id": id}).id
    taken = _taken(_ask(settings, lambda: ticks.trigger(caller, name, trigger_id, settings)))
    typer.echo(f"{taken.run.key}: {taken.run.error_message or taken.outcome}")


@schedules.command("next")
def next_ticks(
    name: Name,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many.")] = 10,
    tenant: Tenant = "default",
) -> None:
    """Show its next ticks."""
    schedule = _ask(Settings.load(), lambda: service.find(tenant, name))
    local = ZoneInfo(schedule.definition.tz)
    rows = [(one.tick, one.tick.astimezone(local).isoformat(), one.key) for one in ticks.coming(schedule, n)]
    show_table(["tick (UTC)", schedule.definition.tz, "key"], _utc(rows))


@schedules.command("backfill")
def backfill(
    name: Name,
    from_: Annotated[str, typer.Option("--from", help="First tick (ISO 8601).")],
    to: Annotated[str, typer.Option("--to", help="Last tick, in the past.")],
    tenant: Tenant = "default",
) -> None:
    """Make a run for each past tick of a range that has none."""
    settings = _settings()
    caller = _tenant(settings, tenant)
    request = _checked(BackfillRequest, {"from": from_, "to": to})
    wanted = _ask(settings, lambda: ticks.backfill_ticks(tenant, name, request))
    created = 0
    for tick in wanted:
        taken = _taken(_ask(settings, _backfilling(caller, name, tick, settings)))
        created += taken.outcome == "acquired"
    typer.echo(f"{name}: {len(wanted)} ticks, {created} new runs")


def _backfilling(
    caller: Caller, name: str, tick: datetime, settings: Settings
) -> Callable[[], Operation[Started]]:
    return lambda: ticks.backfill_tick(caller, name, tick, settings)


def _settings() -> Settings:
    """The environment's, for runs that nobody publishes here: the relay is to do that at once."""
    return Settings.load().model_copy(update={"publish_grace_s": 0})


def _ask(settings: Settings, operation: Callable[[], Operation[T]]) -> T:
    """The operation's value; what it refuses is one line on stderr."""
    try:
        return Database(settings.require_database_url(), pool_size=1).run(operation)
    except BadSchedule as error:
        raise ConfigError(f"{error.field}: {error}") from None
    except Refusal as refusal:
        raise ConfigError(str(refusal)) from None


def _tenant(settings: Settings, name: str) -> Caller:
    """Who asks, for a tenant that exists."""
    tenant = _ask(settings, lambda: account.find_tenant(name))
    if tenant is None:
        raise ConfigError(f"no tenant named {name!r}")
    return Caller(
        tenant_id=tenant.id, plan=tenant.plan, key_id=actor(), key_preview="", rate_limit=None, disabled=False
    )


def _taken(started: Started) -> Taken:
    if isinstance(started.taken, Refused):
        raise ConfigError(str(started.taken.refusal))
    return started.taken


def _when(definition: Definition) -> str:
    if definition.every_s is not None:
        return f"every {definition.every_s} s"
    return definition.cron or f"at {_at(definition.at)}"


def _at(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def _utc(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [
        tuple(cell.astimezone(UTC) if isinstance(cell, datetime) else cell for cell in row) for row in rows
    ]


def _show(schedule: Schedule) -> None:
    """All that is said of a schedule, but what is nothing or unchanged."""
    rows: list[tuple[Any, ...]] = [
        ("name", schedule.name),
        ("status", schedule.status),
        ("next tick (UTC)", schedule.next_tick_at),
        ("last tick (UTC)", schedule.last_tick_at),
    ]
    for field in fields(Definition):
        value = getattr(schedule.definition, field.name)
        if value is not None:
            rows.append((field.name, value))
    rows += [
        ("made by", f"{schedule.created_by} ({schedule.origin})"),
        ("changed by", schedule.updated_by),
        ("edited", ", ".join(schedule.edited) or None),
    ]
    show_table(["field", "value"], _utc(rows))
