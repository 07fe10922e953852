"""`onceonly-jobs unknown list | settle`: calls that may have happened, and what a person found out about them."""

from __future__ import annotations

import getpass
import json
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from onceonly_jobs.cli.tables import show_table
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.unknown import SettleRequest
from onceonly_jobs.domain.governance import usd
from onceonly_jobs.errors import ConfigError, Refusal
from onceonly_jobs.services import unknown as service
from onceonly_jobs.store.database import Database

unknown = typer.Typer(help="Tool calls whose outcome is unknown.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(unknown, name="unknown")


@unknown.command("list")
def list_unknown(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's calls.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the oldest so many.")] = 0,
) -> None:
    """Show the calls that may have happened and wait to be settled, oldest first."""
    total, calls = _database(Settings.load()).run(service.list_calls, tenant, limit, offset)
    rows = [
        (
            c.started_at,
            c.tenant_id,
            c.agent_id,
            c.tool,
            usd(c.reserved_micro_usd),
            c.decision_id,
            c.key,
            c.message,
        )
        for c in calls
    ]
    columns = ["since", "tenant", "agent", "tool", "reserved $", "decision", "key", "message"]
    show_table(columns, rows)
    if total > len(calls):
        typer.echo(f"{len(calls)} of {total}", err=True)


@unknown.command("settle")
def settle(
    key: Annotated[str, typer.Argument(help="The call's key, from `unknown list`.")],
    happened: Annotated[
        bool,
        typer.Option("--happened/--did-not-happen", help="What the tool's side says.", show_default=False),
    ],
    result: Annotated[
        str | None, typer.Option(help="JSON object that repeats of the call get as its result.")
    ] = None,
    cost_usd: Annotated[float | None, typer.Option(help="What it cost; default: what was reserved.")] = None,
    decision: Annotated[
        int | None, typer.Option(help="As listed: settle this call of the key and no later one.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Tenant that the call belongs to.")] = "default",
) -> None:
    """Say what became of a call. This can't be taken back."""
    settings = Settings.load()
    request = _request(
        settings, key=key, happened=happened, result=_json(result), cost_usd=cost_usd, decision_id=decision
    )
    try:
        verdict = _database(settings).run(service.settle, tenant, actor(), request, settings.retention_s)
    except Refusal as refusal:
        raise ConfigError(f"{key}: {refusal}") from None
    typer.echo(f"{key}: {verdict.run.error_code or verdict.run.state}, settled by {verdict.actor}")


def _request(settings: Settings, **fields: Any) -> SettleRequest:
    try:
        request = SettleRequest.model_validate(fields)
    except ValidationError as error:
        raise ConfigError("; ".join(problem["msg"] for problem in error.errors())) from None
    why = service.too_large(request, settings.max_result_bytes)
    if why is not None:
        raise ConfigError(why)
    return request


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--result is not JSON: {error}") from None


def actor() -> str:
    """Who is at the keyboard, as far as the machine knows."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):
        return "cli"


def _database(settings: Settings) -> Database:
    return Database(settings.require_database_url(), pool_size=1)
