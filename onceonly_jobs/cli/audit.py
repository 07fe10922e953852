"""`onceonly-jobs audit verify | export | head`: proof that no decision was altered."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from onceonly_jobs import audit_verifier
from onceonly_jobs.config import Settings
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.services import audit as service
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
) -> None:
    """Check that no sealed row was changed, dropped, inserted or reordered. Exit status 1 if any was."""
    if file is not None:
        raise typer.Exit(audit_verifier.report_export(str(file), head))
    checked = service.verify(_database(), head)
    if audit_verifier.report(checked):
        raise typer.Exit(1)
    chain = checked.chain
    typer.echo(f"ok: {chain.rows} rows, head {chain.number}:{chain.hash}; not yet sealed: {checked.unsealed}")


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
            Path(out.name).replace(to)
        except BaseException:
            Path(out.name).unlink()
            raise


@audit.command()
def head() -> None:
    """Print the newest seal as NUMBER:HASH. Kept elsewhere, it shows later that nothing was cut off."""
    number, hashed = _database().run(service.head)
    typer.echo(f"{number}:{hashed}")
