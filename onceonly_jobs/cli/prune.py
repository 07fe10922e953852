"""`onceonly-jobs prune`: what the scheduler deletes little by little, by hand and at once."""

from __future__ import annotations

from typing import Annotated

import typer

from onceonly_jobs.config import Settings
from onceonly_jobs.services import retention
from onceonly_jobs.store.database import Database
from onceonly_jobs.store.retention import Kept, Kind


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(prune)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much is old.")] = False,
) -> None:
    """Delete finished runs after their retention, expired locks, and old events, in small batches.

    The scheduler does so by itself. Doing it by hand as well harms nothing.
    """
    settings = Settings.load()
    database = Database(settings.require_database_url(), pool_size=1)
    kept = retention.kept(settings)
    for kind in Kind:
        rows = database.run(retention.prunable, kind, kept) if dry_run else _prune(database, kind, kept)
        typer.echo(f"{kind}: {rows} {'to delete' if dry_run else 'deleted'}")


def _prune(database: Database, kind: Kind, kept: Kept) -> int:
    total = 0
    while deleted := database.run(retention.prune, kind, kept, retention.BATCH):
        total += deleted
    return total
