"""`onceonly-jobs workers list`: who executes runs, by what each worker says of itself."""

from __future__ import annotations

import typer

from onceonly_jobs.cli.tables import show_table
from onceonly_jobs.config import Settings
from onceonly_jobs.services import workers as service
from onceonly_jobs.services.workers import ListedWorker
from onceonly_jobs.store.database import Database

workers = typer.Typer(help="The workers of this system.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(workers, name="workers")


@workers.command("list")
def list_workers() -> None:
    """Show the workers, longest at work first. `lost`: it has not reported for a while; `stuck`: it ended itself."""
    db = Database(Settings.load().require_database_url(), pool_size=1)
    columns = "worker id pid state busy of queues started reported message claim".split()
    rows = [
        (
            w.name,
            w.id,
            w.pid,
            state(w),
            w.active,
            w.concurrency,
            ",".join(w.queues),
            w.started_at,
            w.seen_at,
            w.last_message_at,
            w.last_claim_at,
        )
        for w in db.run(service.listed)
    ]
    db.close()
    show_table(columns, rows)


def state(worker: ListedWorker) -> str:
    """As an operator should see it: what a lost worker last said does not count."""
    return "lost" if service.is_lost(worker) and worker.state != "stuck" else worker.state
