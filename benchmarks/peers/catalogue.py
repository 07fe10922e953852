"""Who takes part, in which settings, and how each one's worker is started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A queue in one configuration. `worker` is what follows `python`; without one, only its enqueuing is measured."""

    name: str
    label: str
    adapter: str
    settings: str
    packages: tuple[str, ...]
    worker: str = ""
    variant: str = ""
    unfinished: str = ""
    """SQL that counts the jobs whose end is not stored; none where nothing of that is kept."""
    enqueues: bool = True
    """Whether its enqueuing is measured: not again for a second configuration of its worker."""
    durable: bool = False
    """Whether a job survives the loss of power once it is accepted, as these servers are set."""
    limit: int | None = None
    """So many jobs at most, for one that would take too long."""
    waits: bool = False
    """Whether its adapter can wait for a result."""

    @property
    def ours(self) -> bool:
        return False


_CELERY = "-m celery -A celery_peer worker -c 2 -l WARNING --without-gossip --without-mingle"

PEERS = (
    Peer(
        "celery",
        "Celery on Redis",
        "celery_peer",
        "prefork 2, prefetch 64, early ack, no results, no gossip",
        ("celery[redis]",),
        _CELERY,
        "plain",
    ),
    Peer(
        "celery-postgres",
        "Celery, results in Postgres",
        "celery_peer",
        "prefork 2, prefetch 64, early ack, its own database result backend",
        ("celery[redis]", "sqlalchemy", "psycopg[binary]"),
        _CELERY,
        "postgres",
        unfinished="SELECT {jobs} - count(*) FROM celery_taskmeta",
        enqueues=False,
        waits=True,
    ),
    Peer(
        "dramatiq",
        "dramatiq",
        "dramatiq_peer",
        "Redis, 2 processes of 8 threads, late ack",
        ("dramatiq[redis]",),
        "-m dramatiq dramatiq_peer --processes 2 --threads 8",
    ),
    Peer(
        "huey",
        "huey",
        "huey_peer",
        "Redis, 2 processes",
        ("huey", "redis"),
        "-m huey.bin.huey_consumer huey_peer.huey -k process -w 2",
    ),
    Peer(
        "taskiq",
        "taskiq",
        "taskiq_peer",
        "Redis stream, 2 processes, no results",
        ("taskiq", "taskiq-redis"),
        "-m taskiq worker taskiq_peer:broker --workers 2 --log-level WARNING",
    ),
    Peer("rq", "rq", "rq_peer", "Redis, defaults", ("rq",)),
    Peer("saq", "saq", "saq_peer", "Redis, defaults", ("saq[redis]", "typing-extensions")),
    Peer(
        "procrastinate",
        "procrastinate",
        "procrastinate_peer",
        "Postgres, psycopg, one process, concurrency 2",
        ("procrastinate", "psycopg[binary]"),
        "-m procrastinate --app procrastinate_peer.app worker --concurrency 2",
        unfinished="SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
        durable=True,
    ),
    Peer(
        "pgqueuer",
        "pgqueuer",
        "pgqueuer_peer",
        "Postgres, asyncpg, one process, batches of 10 (its default)",
        ("pgqueuer", "asyncpg", "uvloop"),
        "pgqueuer_peer.py",
        "10",
        unfinished="SELECT count(*) FROM pgqueuer",
        durable=True,
    ),
    Peer(
        "pgqueuer-100",
        "pgqueuer, batches of 100",
        "pgqueuer_peer",
        "Postgres, asyncpg, one process, batches of 100",
        ("pgqueuer", "asyncpg", "uvloop"),
        "pgqueuer_peer.py",
        "100",
        unfinished="SELECT count(*) FROM pgqueuer",
        enqueues=False,
        durable=True,
    ),
    Peer(
        "dbos",
        "DBOS",
        "dbos_peer",
        "Postgres, one process, its queue without limits",
        ("dbos",),
        "dbos_peer.py",
        unfinished="SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')",
        durable=True,
        waits=True,
    ),
)
