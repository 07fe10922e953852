"""`onceonly-jobs examples`: the examples of this project, listed and run against a temporary system."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import typer

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.subprocess_system import LocalSystem
from onceonly_jobs.local.unwinding import unwound_by_signals

FIRST = (
    *("quickstart", "webhook_dedup", "ai_simple", "governance", "tool_permissions", "budget_limits"),
    *("decorator_basic", "langchain_integration"),
)
"""The order to learn them in. The others follow, as they lie in their folders."""
FOLDERS = ("", "general", "ai", "jobs")
PASSED_ON = ("ONCEONLY_BASE_URL", "ONCEONLY_API_KEY", "ONCEONLY_DATABASE_URL", "ONCEONLY_BROKER_URL")

commands = typer.Typer(no_args_is_help=True, help="List and run the examples.")


@dataclass(frozen=True, slots=True)
class Example:
    """One runnable file."""

    path: Path
    folder: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def title(self) -> str:
        """The first line of its docstring."""
        text = ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or ""
        return text.partition("\n")[0]

    @property
    def missing(self) -> str | None:
        """What has to be installed for it, if that is not there."""
        needs_langchain = self.name.startswith("langchain_")
        return "langchain-core" if needs_langchain and find_spec("langchain_core") is None else None


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(commands, name="examples")


def examples_path() -> Path:
    """The examples: inside the wheel, or beside the package in a checkout. Raises ConfigError."""
    package = Path(__file__).parents[1]
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "quickstart.py").is_file():
            return folder
    raise ConfigError("the examples are not installed here: run this in a clone of the repository")


def in_learning_order() -> list[Example]:
    """Every example."""
    root = examples_path()
    found = {
        path.stem: Example(path, folder)
        for folder in FOLDERS
        for path in sorted((root / folder).glob("*.py"))
        if not path.stem.startswith("_")
    }
    return [*(found.pop(name) for name in FIRST), *found.values()]


@commands.command("list")
def show() -> None:
    """Show the examples, in the order to learn them in."""
    typer.echo(f"In {examples_path()}:")
    for example in in_learning_order():
        typer.echo(f"{example.folder:8} {example.name:28} {example.title}")


@commands.command()
def run(
    name: str | None = typer.Argument(None, help="One of `examples list`. Default: all of them."),
    everything: bool = typer.Option(False, "--all", help="All of them, as without a name."),
) -> None:
    """Run an example, or all of them, against a temporary system. Exit status 1 if one fails.

    ONCEONLY_TTL counts as it does for the examples themselves; ONCEONLY_AGENT_ID for one that is named, as all of
    them together would use up the limits of a single agent.
    """
    if name is not None and everything:
        raise ConfigError("give either a name or --all")
    chosen = _chosen(name)
    typer.echo("Starting a temporary system ...")
    with (
        unwound_by_signals(),
        tempfile.TemporaryDirectory(prefix="onceonly-examples-") as folder,
        LocalSystem(data_dir=Path(folder), flower=False, workers=2) as system,
    ):
        env = _environment(system)
        if name is None:
            env.pop("ONCEONLY_AGENT_ID", None)
        failed = [example.name for example in chosen if not _run(example, env, alone=name is not None)]
    if failed:
        typer.echo(f"\nFailed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _chosen(name: str | None) -> list[Example]:
    every = in_learning_order()
    chosen = [
        example for example in every if name in (None, example.name, f"{example.folder}/{example.name}")
    ]
    if not chosen:
        raise ConfigError(f"no example {name!r}; onceonly-jobs examples list shows them all")
    return chosen


def _environment(system: LocalSystem) -> dict[str, str]:
    """What a user sets: the system's addresses and key, and nothing of its secrets."""
    given = {name: value for name, value in os.environ.items() if name not in system.variables}
    own = {name: system.variables[name] for name in PASSED_ON}
    return given | own | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def _run(example: Example, env: dict[str, str], *, alone: bool) -> bool:
    typer.echo(f"\n── {example.name}: {example.title}")
    if not alone and example.missing is not None:
        typer.echo(f"Skipped: pip install {example.missing}")
        return True
    sys.stdout.flush()
    return subprocess.run([sys.executable, str(example.path)], env=env, check=False).returncode == 0
