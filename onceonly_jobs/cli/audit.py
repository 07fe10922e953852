"""`onceonly-jobs audit verify | export | head | prune`: proof that no decision was altered."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from onceonly_jobs import audit_verifier
from onceonly_jobs.config import Settings
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import audit as service
from onceonly_jobs.services import audit_pruning as pruning
from onceonly_jobs.store.database import Database

audit = typer.Typer(help="The sealed audit trail.", no_args_is_help=True)

Head = Annotated[
    str | None,
    typer.Option(help="Hash, or NUMBER:HASH, of a seal that has to be in the chain: see `audit head`."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(audit, name="audit")


def _database() -> Database:
    return Database(Settings.load().require_database_url(), pool_size=1)


@audit.command()
def verify(
    head: Head = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Check this export instead of the database.", exists=True, dir_okay=False),
    ] = None,
    archive: Annotated[
        list[Path] | None,
        typer.Option(
            help="File that `audit prune` wrote, to be checked with the database; once for each, oldest first.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Check that no sealed row was changed, dropped, inserted or reordered. Exit status 1 if any was."""
    if file is not None:
        raise typer.Exit(audit_verifier.report_exports([*map(str, archive or ()), str(file)], head))
    checked = service.verify(_database(), head, [str(path) for path in archive or ()])
    if audit_verifier.report(checked):
        raise typer.Exit(1)
    chain = checked.chain
    believed = f"; believed: that up to seal {checked.pruned} all was well" if not archive else ""
    typer.echo(
        f"ok: {chain.rows} rows, head {chain.number}:{chain.hash}; not yet sealed: {checked.unsealed}"
        f"{believed if checked.pruned else ''}"
    )


@audit.command()
def export(
    to: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
    from_seal: Annotated[int, typer.Option(min=1, help="First seal to export.")] = 1,
) -> None:
    """Write seals and their rows as JSONL, to be verified without the database."""
    lines = service.export(_database(), from_seal)
    try:
        if to is None:
            for line in lines:
                typer.echo(line)
        else:
            _write(to, lines)
    except LookupError as error:
        raise ConfigError(str(error)) from None


def _write(to: Path, lines: Iterable[str]) -> None:
    """The lines in a file, or the file as it was: half an export would look like an attack."""
    with NamedTemporaryFile(
        "w", dir=to.parent, prefix=f".{to.name}.", encoding="utf-8", newline="\n", delete=False
    ) as out:
        try:
            out.writelines(f"{line}\n" for line in lines)
            out.flush()
            os.fsync(out.fileno())
            Path(out.name).replace(to)
        except BaseException:
            Path(out.name).unlink()
            raise
    directory = os.open(to.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


@audit.command()
def prune(
    to: Annotated[Path, typer.Option("--export", help="New file for what is to be deleted. Keep it.")],
    before: Annotated[
        datetime | None, typer.Option(help="Delete what was sealed before this time, in UTC.")
    ] = None,
    keep_days: Annotated[
        int | None, typer.Option(min=0, help="Delete what was sealed longer ago than this.")
    ] = None,
) -> None:
    """Move the oldest part of the trail to a file: export, check the file, then delete, and leave a checkpoint.

    As the owner of the tables, ONCEONLY_MIGRATION_DATABASE_URL. Whole seals only, up to the first that has a decision
    whose run has not ended, or may be replayed. Versions of policies stay.
    """
    if (before is None) == (keep_days is None):
        raise ConfigError("say either --before or --keep-days")
    if to.exists():
        raise ConfigError(f"{to} is there already")
    database = Database(Settings.load().owner_database_url, pool_size=1)
    until = None if before is None else before.replace(tzinfo=UTC)
    plan = database.run(pruning.plan, until, keep_days or 0)
    if plan.needed is not None:
        typer.echo(
            f"up to seal {plan.last}: seal {plan.needed.seal} has the decision on {plan.needed.key}, which may go on"
        )
    if plan.empty:
        typer.echo("nothing to prune")
        return
    _write(to, service.export(database, plan.after + 1, plan.last))
    rows = pruning.prune(database, plan, to)
    typer.echo(f"{rows} rows deleted, of seals {plan.after + 1} to {plan.last}; they are in {to}: keep it")


@audit.command()
def head() -> None:
    """Print the newest seal as NUMBER:HASH. Kept elsewhere, it shows later that nothing was cut off."""
    number, hashed = _database().run(service.head)
    typer.echo(f"{number}:{hashed}")
