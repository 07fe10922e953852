"""The command `onceonly-jobs`."""

from __future__ import annotations

import sys
from importlib import import_module

from onceonly_jobs.cli.loading import loading
from onceonly_jobs.errors import ConfigError, SchemaBusy

_SERVER_PACKAGES = {
    *("alembic", "celery", "fastapi", "flower", "kombu", "limits", "psutil", "psycopg", "pydantic_settings"),
    *("cronsim", "prometheus_client", "redis", "rich", "sqlalchemy", "structlog", "typer", "uvicorn"),
}


def _explain(missing: ModuleNotFoundError) -> int:
    """Say what to install where a package of the server extra is missing; anything else is a real failure."""
    if (missing.name or "").split(".")[0] not in _SERVER_PACKAGES:
        raise missing
    print(f"error: {missing.name} is not installed: pip install 'onceonly-jobs[all]'", file=sys.stderr)
    return 2


_MODULES = {
    **dict.fromkeys(("up", "flower"), "up"),
    **dict.fromkeys(("api", "worker", "beat", "relay"), "parts"),
    **dict.fromkeys(("migrate", "keys", "tenants", "doctor"), "admin"),
    "demo": "demo",
    "examples": "examples",
    "audit": "audit",
    "unknown": "unknown",
    "dead": "dead",
    "schedules": "schedules",
    "runs": "runs",
    "webhook": "webhook",
    "policies": "policies",
    "prune": "prune",
    "workers": "workers",
    "torture": "torture",
}
"""Which file has which command: a part of the system shall not load what only an operator needs."""

try:
    import typer
except ModuleNotFoundError as missing:  # the plain install is the client alone
    sys.exit(_explain(missing))


def build(words: list[str]) -> typer.Typer:
    """The command line with the command that the words name, or with all of them."""
    app = typer.Typer(
        name="onceonly-jobs",
        help="A job queue and control plane for AI agents: one effective execution per key.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(options)
    known = dict.fromkeys(_MODULES[word] for word in words[:1] if word in _MODULES)
    with loading():
        for module in known or dict.fromkeys(_MODULES.values()):
            import_module(f"onceonly_jobs.cli.{module}").register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("onceonly-jobs"))
        raise typer.Exit


def options(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_version, is_eager=True
    ),
) -> None:
    """Options that go before the command."""


def main() -> None:
    """Run the command line. What is wrong with settings or machine is one line on stderr, exit status 2."""
    try:
        build(sys.argv[1:])()
    except (ConfigError, SchemaBusy) as error:
        sys.exit(_report(str(error)))
    except ModuleNotFoundError as missing:
        sys.exit(_explain(missing))
    except Exception as error:
        reason = _database_trouble(error)
        if reason is None:
            raise
        sys.exit(_report(reason))


def _database_trouble(error: Exception) -> str | None:
    """What to say where Postgres was asked in vain; None for any other failure."""
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy.exc import DBAPIError, TimeoutError

    return (
        f"the database: {error.__cause__ or error}" if isinstance(error, DBAPIError | TimeoutError) else None
    )


def _report(reason: str) -> int:
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
