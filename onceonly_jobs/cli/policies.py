"""`onceonly-jobs policies history`: who changed what an agent may do."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from onceonly_jobs.cli.tables import show_table
from onceonly_jobs.config import Settings
from onceonly_jobs.services import governance
from onceonly_jobs.store.database import Database

policies = typer.Typer(help="What agents may do.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(policies, name="policies")


@policies.callback()
def _group() -> None:
    """Keeps `history` a command of its own."""


@policies.command()
def history(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    tenant: Annotated[str, typer.Option(help="Tenant that the agent belongs to.")] = "default",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the newest so many.")] = 0,
) -> None:
    """Show who changed an agent's policy or moved its kill switch, newest first."""
    database = Database(Settings.load().require_database_url(), pool_size=1)
    changes = database.run(governance.history_of, tenant, agent, limit, offset)
    rows = [
        (c.at, c.version, c.change, c.actor, c.reason, None if c.policy is None else json.dumps(c.policy))
        for c in changes
    ]
    show_table(["at", "version", "change", "actor", "reason", "policy"], rows)
