"""`onceonly-jobs up`: the whole system on this machine; and Flower, one of its parts."""

from __future__ import annotations

import os
import shlex
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onceonly_jobs.local.devenv import Running

COLUMNS = "name,kwargs,state,received,runtime,worker,uuid"
"""Of Flower's list of tasks: its own choice lacks what they are about."""

Host = Annotated[str, typer.Option(help="Address the API listens on.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port the API listens on; 0 is any free one.")]
DataDir = Annotated[Path, typer.Option(help="Where the embedded servers keep their data.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs a worker executes at a time. Default: 2 to 4, by processors.")
]
NoFlower = Annotated[bool, typer.Option("--no-flower", help="Do not start Flower.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(up)
    app.command()(flower)


def up(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    data_dir: DataDir = Path(".onceonly"),
    workers: Workers = None,
    no_flower: NoFlower = False,
) -> None:
    """Start everything: PostgreSQL, Redis, API, worker, scheduler and Flower. Ctrl-C ends it.

    Where ONCEONLY_DATABASE_URL or ONCEONLY_BROKER_URL is set, that server is used and none is started.
    """
    import asyncio

    from onceonly_jobs.local.output import Output
    from onceonly_jobs.local.system import Options, run

    options = Options(host=host, port=port, data_dir=data_dir, workers=workers, flower=not no_flower)
    asyncio.run(run(options, Output(sys.stderr), _announce))


def _announce(running: Running) -> None:
    """Say what runs and what to do next."""
    path = shlex.quote(str(min(str(running.path), os.path.relpath(running.path), key=len)))
    lines = [
        "",
        f"  OnceOnly Jobs is up.   API      {running.base_url}",
        f"                         docs     {running.api_url}/docs",
        *([f"                         Flower   {running.flower_url}"] if running.flower_url else []),
        f"                         metrics  {' '.join(running.metrics_urls)}",
        "",
        "  In another terminal:",
        "",
        f"    set -a; . {path}; set +a",
        "    onceonly-jobs demo",
        '    curl -s "$ONCEONLY_BASE_URL/check-lock" -H "Authorization: Bearer $ONCEONLY_API_KEY" \\',
        """      -H 'Content-Type: application/json' -d '{"key": "order:42", "ttl": 60}'""",
        "",
        *_about_tools(),
        "  Ctrl-C ends everything; the data stays.",
        "",
    ]
    typer.echo("\n".join(lines))


def _about_tools() -> list[str]:
    """What `up` opens that a deployment would not."""
    if os.environ.get("ONCEONLY_TOOL_ALLOW"):
        return []
    return [
        "  Tools may be on this machine: ONCEONLY_TOOL_ALLOW is `loopback` here, and empty elsewhere.",
        "",
    ]


def flower(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 5555,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let everybody in who can reach it: something in front asks.")
    ] = False,
) -> None:
    """Start Flower, the monitor of the Celery workers. Asks for ONCEONLY_FLOWER_AUTH where that is set."""
    from onceonly_jobs.config import Settings

    env = _flower_environment(Settings.load().flower_auth, address, no_auth)
    command = [sys.executable, "-m", "celery", "-A", "onceonly_jobs.worker.default", "flower"]
    command += [f"--port={port}", f"--address={address}", "--logging=warning"]
    os.execve(command[0], command, env)  # noqa: S606 - an exec without a shell is the point


def _flower_environment(auth: str | None, address: str, no_auth: bool) -> dict[str, str]:
    """With the password, which the list of processes would show. Raises ConfigError where anybody could come in.

    Without a password, Flower itself keeps its HTTP API shut, by which runs could be asked for and workers ended.
    """
    from onceonly_jobs.errors import ConfigError

    own = any(os.environ.get(name) for name in ("FLOWER_BASIC_AUTH", "FLOWER_AUTH"))
    if auth is None and not own and not no_auth and not _is_loopback(address):
        raise ConfigError(
            f"ONCEONLY_FLOWER_AUTH: not set, and others can reach Flower on {address}: "
            "set it to user:password, or give --no-auth"
        )
    env = {"FLOWER_TASKS_COLUMNS": COLUMNS, **os.environ}
    return env if auth is None else {**env, "FLOWER_BASIC_AUTH": auth}


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
