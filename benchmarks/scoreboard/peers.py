"""Who takes part, and how each one's worker is started: two jobs at a time, and otherwise its defaults."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "onceonly"


@dataclass(frozen=True)
class Peer:
    """A queue in one configuration. `worker` is what follows `python`."""

    name: str
    label: str
    adapter: str
    worker: str
    variant: str = ""
    packages: tuple[str, ...] = ()
    kills_scheduler: bool = False

    @property
    def ours(self) -> bool:
        return self.adapter == "onceonly_peer"


_CELERY = "-m celery -A celery_peer worker --concurrency 2 --loglevel WARNING"
_TASKIQ = "-m taskiq worker taskiq_peer:broker --workers 1 --max-async-tasks 2"
_ONCEONLY = "-m onceonly_jobs.cli.main worker --app onceonly_peer --concurrency 2"

PEERS = [
    Peer("celery-early", "Celery, early ack", "celery_peer", _CELERY, "early", ("celery[redis]",)),
    Peer("celery-late", "Celery, late ack", "celery_peer", _CELERY, "late", ("celery[redis]",)),
    Peer(
        "celery-late-8",
        "Celery, late ack, visibility timeout 8 s",
        "celery_peer",
        _CELERY,
        "late-8",
        ("celery[redis]",),
    ),
    Peer(
        "dramatiq",
        "dramatiq",
        "dramatiq_peer",
        "-m dramatiq dramatiq_peer --processes 1 --threads 2",
        packages=("dramatiq[redis]",),
    ),
    Peer(
        "huey",
        "huey",
        "huey_peer",
        "-m huey.bin.huey_consumer huey_peer.huey -w 2",
        packages=("huey", "redis"),
    ),
    Peer("taskiq-list", "taskiq, list", "taskiq_peer", _TASKIQ, "list", ("taskiq", "taskiq-redis")),
    Peer(
        "taskiq-stream",
        "taskiq, stream, idle timeout 5 s",
        "taskiq_peer",
        _TASKIQ,
        "stream-5",
        ("taskiq", "taskiq-redis"),
    ),
    Peer(
        "saq",
        "saq, heartbeat 3 s, 5 attempts",
        "saq_peer",
        "-m saq saq_peer.settings",
        packages=("saq[redis]", "typing-extensions"),
    ),
    Peer(
        "rq",
        "rq, worker pool",
        "rq_peer",
        "-c \"import sys; from rq.cli import main; sys.argv[0] = 'rq'; main()\" worker-pool -n 2 -u {redis}",
        packages=("rq",),
    ),
    Peer(
        "procrastinate",
        "procrastinate",
        "procrastinate_peer",
        "-m procrastinate --app procrastinate_peer.app worker --concurrency 2",
        packages=("procrastinate", "psycopg[binary]"),
    ),
    Peer("pgqueuer", "pgqueuer", "pgqueuer_peer", "pgqueuer_peer.py", packages=("pgqueuer", "asyncpg")),
    Peer(OURS, "**OnceOnly Jobs**, worker killed", "onceonly_peer", _ONCEONLY),
    Peer(
        "onceonly-both",
        "**OnceOnly Jobs**, worker and scheduler killed",
        "onceonly_peer",
        _ONCEONLY,
        kills_scheduler=True,
    ),
]
