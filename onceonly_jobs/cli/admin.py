"""`onceonly-jobs migrate | keys | tenants | doctor`: what an operator does by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from onceonly_jobs.api.ratelimit import parse_rate
from onceonly_jobs.cli.tables import console, show_table
from onceonly_jobs.config import Settings
from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import account
from onceonly_jobs.store.account import Tenant
from onceonly_jobs.store.database import Database

keys = typer.Typer(help="API keys.", no_args_is_help=True)
tenants = typer.Typer(help="Tenants: separate namespaces with a plan each.", no_args_is_help=True)

TenantName = Annotated[str, typer.Option(help="Tenant that the key belongs to; made if it is new.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(migrate)
    app.command()(doctor)
    app.add_typer(keys, name="keys")
    app.add_typer(tenants, name="tenants")


def migrate(
    to: Annotated[str, typer.Option(help="Revision to go to; an older one takes the schema back.")] = "head",
) -> None:
    """Bring the database's schema to this version.

    Uses ONCEONLY_MIGRATION_DATABASE_URL, the tables' owner, where it is set; the role of
    ONCEONLY_DATABASE_URL is then granted what serving needs.
    """
    from onceonly_jobs.store import migrations

    settings = Settings.load()
    migrations.upgrade(settings.owner_database_url, settings.require_database_url(), to)
    typer.echo(f"schema is at {migrations.current(settings.owner_database_url) or 'base'}")


def doctor() -> None:
    """Check database, schema, broker and workers, and say what is wrong. Exit status 1 if anything is."""
    from onceonly_jobs.cli.checks import all_checks

    failed = False
    for check in all_checks(Settings.load()):
        mark = "[green]ok[/]  " if check.ok else "[red]FAIL[/]"
        console.print(f"{mark} {check.name}: {check.found}", highlight=False)
        failed = failed or not check.ok
    raise typer.Exit(1 if failed else 0)


def _database() -> Database:
    return Database(Settings.load().require_database_url(), pool_size=1)


@keys.command("create")
def create_key(
    tenant: TenantName = "default",
    plan: Annotated[
        Plan | None, typer.Option(help="Plan of a new tenant; the default is ONCEONLY_DEFAULT_PLAN.")
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(help="Requests of this key, like 100/second; the default is ONCEONLY_RATE_LIMIT."),
    ] = None,
) -> None:
    """Make an API key and print it, this once: only its hash is kept."""
    if rate_limit is not None:
        parse_rate(rate_limit, "--rate-limit")
    db = _database()
    settings = Settings.load()
    made = db.run(account.ensure_tenant, tenant, plan or Plan(settings.default_plan))
    if plan is not None and made.plan is not plan:
        raise ConfigError(
            f"tenant {tenant!r} is on plan {made.plan}; change it with `onceonly-jobs tenants plan {tenant} {plan}`"
        )
    key = db.run(account.create_key, tenant, rate_limit)
    typer.echo(key.api_key)
    typer.echo(f"id {key.id}, tenant {tenant}, plan {made.plan}; it is not shown again", err=True)


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's keys.")] = None,
) -> None:
    """Show all keys, never their secret part."""
    rows = [
        (
            key.id,
            key.tenant_id,
            key.plan.value,
            key.preview,
            key.rate_limit or "-",
            key.created_at,
            key.disabled_at,
        )
        for key in _database().run(account.list_keys, tenant)
    ]
    show_table(["id", "tenant", "plan", "key", "rate limit", "created", "revoked"], rows)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The key's id, from `keys list`.")]) -> None:
    """Refuse a key from the next request on."""
    if not _database().run(account.revoke_key, key_id):
        raise ConfigError(f"no API key with the id {key_id!r}")
    typer.echo(f"revoked {key_id}")


@tenants.command("create")
def create_tenant(
    name: str, plan: Annotated[Plan | None, typer.Option(help="Default: ONCEONLY_DEFAULT_PLAN.")] = None
) -> None:
    """Make a tenant. An existing one is left as it is."""
    tenant = _database().run(account.ensure_tenant, name, plan or Plan(Settings.load().default_plan))
    typer.echo(f"{tenant.id}: plan {tenant.plan}")


@tenants.command("list")
def list_tenants() -> None:
    """Show all tenants."""
    rows = [
        (tenant.id, tenant.plan.value, tenant.created_at, tenant.disabled_at)
        for tenant in _database().run(account.list_tenants)
    ]
    show_table(["tenant", "plan", "created", "disabled"], rows)


@tenants.command("plan")
def set_plan(name: str, plan: Plan) -> None:
    """Move a tenant to another plan."""
    typer.echo(f"{_known(name, _database().run(account.set_plan, name, plan)).id}: plan {plan}")


@tenants.command("disable")
def disable_tenant(name: str) -> None:
    """Refuse every key of a tenant from the next request on."""
    typer.echo(f"{_known(name, _database().run(account.set_disabled, name, True)).id}: disabled")


@tenants.command("enable")
def enable_tenant(name: str) -> None:
    """Accept a tenant's keys again; revoked keys stay revoked."""
    typer.echo(f"{_known(name, _database().run(account.set_disabled, name, False)).id}: enabled")


def _known(name: str, tenant: Tenant | None) -> Tenant:
    if tenant is None:
        raise ConfigError(f"no tenant named {name!r}")
    return tenant
