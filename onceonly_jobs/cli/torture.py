"""`onceonly-jobs torture`: break a whole system at random, and prove that nothing was lost or done twice."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from onceonly_jobs.config import Settings
from onceonly_jobs.local.unwinding import unwound_by_signals
from onceonly_jobs.torture.nemesis import FAULTS, chosen
from onceonly_jobs.torture.suite import Plan, Report, torture

LISTED = 30


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(name="torture")(torture_command)


def torture_command(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long clients and faults go on.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Repeats the choices of another torture. Default: by chance.")
    ] = None,
    faults: Annotated[
        str, typer.Option(help=f"`all`, `none`, or a comma list of: {', '.join(FAULTS)}.")
    ] = "all",
    clients: Annotated[int, typer.Option(min=1, help="How many clients ask at a time.")] = 12,
    report: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result alone.")] = False,
) -> None:
    """Torture a system: many clients, an independent witness, faults of all kinds, and a check of what is left.

    With ONCEONLY_DATABASE_URL, ONCEONLY_BROKER_URL and ONCEONLY_SECRET_KEY set, the servers of that deployment are
    used, in a namespace and a queue of the torture's own; else servers are started for it. Exit status 1 where a
    promise was broken; then the directory with all evidence is kept. See docs/TORTURE.md.
    """
    names = chosen(faults)
    chosen_seed = secrets.randbits(32) if seed is None else seed
    settings = Settings.load()
    directory = Path(tempfile.mkdtemp(prefix="onceonly-torture-"))
    began = time.monotonic()

    def say(text: str) -> None:
        if not quiet:
            typer.echo(f"{time.monotonic() - began:6.1f} s  {text}")

    say(f"seed {chosen_seed}, evidence in {directory}")
    plan = Plan(seconds=minutes * 60, seed=chosen_seed, faults=names, clients=clients)
    with unwound_by_signals():
        found = torture(plan, directory, given=settings, say=say)
    _show(found)
    if report is not None:
        report.write_text(found.as_json() + "\n", encoding="utf-8")
    if found.violations:
        typer.echo(f"Broken: {len(found.violations)} violations. The evidence is in {directory}")
        raise typer.Exit(1)
    shutil.rmtree(directory, ignore_errors=True)
    typer.echo("Kept: every promise.")


def _show(report: Report) -> None:
    lines = {
        "seed": report.seed,
        "minutes": round(report.seconds / 60, 2),
        "operations": f"{report.operations} ({report.in_doubt} without a certain answer)",
        "runs": f"{report.runs}, started {report.starts} times ({report.restarted} again)",
        "tool calls": report.tool_calls,
        "decisions": report.decisions,
        "ticks": report.ticks,
        "refused writes": report.refused_writes,
        "all done": f"{report.healed_s} s after the last fault",
        "slowest to end": f"{report.slowest_drain_s} s",
        "faults": sum(report.faults.values()),
        **{f"  {name}": count for name, count in report.faults.items()},
        **{f"  {name}": f"skipped: {why}" for name, why in report.skipped.items()},
        "duplicates": report.duplicates,
        "lost": report.lost,
        "violations": len(report.violations),
    }
    for name, value in lines.items():
        typer.echo(f"{name:<18} {value}")
    for violation in report.violations[:LISTED]:
        typer.echo(f"  {violation}")
    if len(report.violations) > LISTED:
        typer.echo(f"  and {len(report.violations) - LISTED} more")
