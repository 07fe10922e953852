"""`onceonly-jobs api | worker | beat | relay`: each part of the system alone."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from onceonly_jobs.cli.loading import loading
from onceonly_jobs.errors import ConfigError

if TYPE_CHECKING:
    from celery import Celery

OWN_WORKERS = "workers.app"
"""A deployment's own Celery app, where the current directory has one."""
BUILT_IN = "onceonly_jobs.worker.default"

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 is any free one.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes that serve requests.")]
Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Runs executed at a time. Default: one per processor.")
]
Queues = Annotated[
    str | None, typer.Option(help="Queues to serve, comma-separated. Default: those of its jobs.")
]
App = Annotated[
    str | None,
    typer.Option(
        help=f"Celery app. Default: {OWN_WORKERS} in the current directory, else the built-in jobs."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the parts as commands."""
    for command in (api, worker, beat, relay):
        app.command()(command)


def api(host: Host = "127.0.0.1", port: Port = 8080, workers: Processes = 1) -> None:
    """Serve the HTTP API."""
    with loading():
        import uvicorn

        from onceonly_jobs import metrics, tracing
        from onceonly_jobs.api.protocol import Protocol
        from onceonly_jobs.config import Settings
        from onceonly_jobs.local.ports import check_can_listen

        if workers == 1:
            import onceonly_jobs.api.app  # noqa: F401 - served by this very process
    settings = Settings.load()
    # What would keep it from serving is said here, once, in one line; not in every process.
    settings.require_database_url()
    check_can_listen(host, port)
    if settings.otel:
        tracing.prepare()
    shared = metrics.share_between_processes() if workers > 1 else None
    try:
        uvicorn.run(
            "onceonly_jobs.api.app:app_from_env",
            factory=True,
            host=host,
            port=port,
            workers=workers if workers > 1 else None,
            access_log=False,
            log_level=settings.log_level.lower(),
            log_config=None,  # app_from_env configures logging
            server_header=False,
            http=Protocol,
            ws="none",
            timeout_graceful_shutdown=10,
        )
    finally:
        metrics.forget(shared)


def worker(concurrency: Concurrency = None, queues: Queues = None, app: App = None) -> None:
    """Execute runs."""
    options = ["--without-gossip", "--without-mingle"]
    if concurrency is not None:
        options += ["--concurrency", str(concurrency)]
    if queues is not None:
        options += ["--queues", queues]
    _celery(app, "worker", options)


def beat(app: App = None) -> None:
    """Serve schedules, publish due runs, take back those of dead workers, and send what the app's own
    `beat_schedule` asks for."""
    _celery(app, "beat", [])


def relay() -> None:
    """Publish due runs and take back those of dead workers. Serves no schedules: that is for `beat`."""
    with loading():
        from onceonly_jobs.config import Settings
        from onceonly_jobs.telemetry import configure_logging
        from onceonly_jobs.worker.beat import make_relay, show_figures
        from onceonly_jobs.worker.files import ALIVE_FILE, READY_FILE, touch
        from onceonly_jobs.worker.stopping import StopSignals
    settings = Settings.load()
    configure_logging(settings.log_level, "relay", settings.log_format, settings.secrets)
    stop = StopSignals()
    stop.listen()
    relay = make_relay(settings)
    show_figures(settings)
    while not stop.wait(relay.tick()):
        touch(READY_FILE)
        touch(ALIVE_FILE)


def _celery(app: str | None, command: str, options: list[str]) -> None:
    """Become a command of Celery's, so that its habits and signals hold. What its other commands and its plugins
    need, Flower's among them, is not loaded.
    """
    with loading():
        from celery.bin.base import CLIContext

        import onceonly_jobs.worker.app  # noqa: F401 - what the app named below is made with
        from onceonly_jobs.config import Settings

        celerys = getattr(import_module(f"celery.bin.{command}"), command)

    settings = Settings.load()
    settings.require_database_url()
    settings.require_broker_url()
    # Celery warns of every worker that runs as root. What makes that dangerous, pickled messages, is not accepted.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    if os.getcwd() not in sys.path:  # noqa: PTH109 (sys.path holds strings)
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    found = _found(app or _app())
    for kind in ("preload", command):
        celerys.params.extend(found.user_options.get(kind, ()))
    sys.argv = ["-m", "onceonly_jobs.cli.main", *sys.argv[1:]]  # what Celery starts anew on SIGHUP
    context = CLIContext(app=found, no_color=False, workdir=None, quiet=True)
    celerys.main(options, "celery", obj=context, auto_envvar_prefix=f"CELERY_{command.upper()}")


def _found(name: str) -> Celery:
    """The app of this name. Raises ConfigError where there is none; what goes wrong in its own module goes through."""
    from celery import Celery
    from celery.app.utils import find_app

    try:
        found = find_app(name)
    except ModuleNotFoundError as missing:
        if not re.match(rf"{re.escape(str(missing.name))}(\W|$)", name):
            raise
        raise ConfigError(f"--app {name}: there is no module {missing.name}") from None
    except AttributeError as missing:
        if missing.name not in ("celery", None):  # the last name that is tried
            raise
        found = None
    if not isinstance(found, Celery):
        raise ConfigError(f"--app {name}: no Celery app is there")
    return found


def _app() -> str:
    try:
        own = importlib.util.find_spec(OWN_WORKERS)
    except ModuleNotFoundError:
        own = None
    return BUILT_IN if own is None else OWN_WORKERS
