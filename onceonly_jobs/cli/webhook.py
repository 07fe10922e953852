"""`onceonly-jobs webhook set | show | remove | test | deliveries | retry`: where notifications go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import typer
from pydantic import ValidationError

from onceonly_jobs.cli.tables import show_table
from onceonly_jobs.cli.unknown import actor
from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.webhooks import WebhookRequest
from onceonly_jobs.errors import ConfigError, Refusal
from onceonly_jobs.services import webhooks
from onceonly_jobs.services.tools import vault_of
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.statement import Operation

webhook = typer.Typer(help="Where a tenant's notifications of failures go.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Tenant whose webhook it is.")]

P = ParamSpec("P")
T = TypeVar("T")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(webhook, name="webhook")


def _run(operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """The operation's value. Raises ConfigError for a refusal."""
    db = Database(Settings.load().require_database_url(), pool_size=1)
    try:
        return db.run(operation, *args, **kwargs)
    except Refusal as refusal:
        raise ConfigError(str(refusal)) from None


@webhook.command("set")
def set_webhook(
    url: str,
    secret: Annotated[
        str, typer.Option(prompt=True, hide_input=True, help="Signs each notification. Asked for if absent.")
    ],
    tenant: Tenant = "default",
) -> None:
    """Send a tenant's notifications there from now on."""
    try:
        request = WebhookRequest(url=url, secret=secret)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("; ".join(wrong)) from None
    _run(webhooks.put, tenant, actor(), request, vault_of(Settings.load()))
    typer.echo(f"{tenant}: notifications go to {url}")


@webhook.command("show")
def show_webhook(tenant: Tenant = "default") -> None:
    """Show a tenant's webhook, never its secret."""
    found = _run(webhooks.get, tenant)
    columns = ["url", "secret", "set", "pending", "dead"]
    show_table(columns, [(found.url, found.secret_mask, found.updated_at, found.pending, found.dead)])


@webhook.command("remove")
def remove_webhook(tenant: Tenant = "default") -> None:
    """Send no more notifications. Those that were not delivered are given up."""
    typer.echo(f"{tenant}: removed {_run(webhooks.delete, tenant, actor())}")


@webhook.command("test")
def try_webhook(tenant: Tenant = "default") -> None:
    """Send a notification that says nothing; `deliveries` shows what becomes of it."""
    typer.echo(_run(webhooks.try_out, tenant, actor()).message_id)


@webhook.command("deliveries")
def deliveries(
    state: Annotated[str | None, typer.Option(help="pending, delivered or dead.")] = None,
    tenant: Tenant = "default",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """Show a tenant's notifications, latest first."""
    rows = [
        (n.at, n.type, n.state, n.attempts, n.due_at, n.status, n.error, n.message_id)
        for n in _run(webhooks.notifications, tenant, state, limit, 0)
    ]
    show_table(["since", "type", "state", "attempts", "next", "status", "error", "id"], rows)


@webhook.command("retry")
def retry(
    message_id: Annotated[
        str | None, typer.Argument(help="From `deliveries`. Default: all that are dead.")
    ] = None,
    tenant: Tenant = "default",
) -> None:
    """Try dead notifications again, under the ids they had."""
    typer.echo(f"{_run(webhooks.retry, tenant, message_id)} to be tried again")
