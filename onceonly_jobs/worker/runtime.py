"""What a worker process has at hand for its runs."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

from billiard.process import current_process

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.services.claims import Holder
from onceonly_jobs.store.database import Database
from onceonly_jobs.worker.shared import Shared


def silence_s(settings: Settings) -> float:
    """How long a worker waits for an answer of the database: by then its claims have expired."""
    return 2 * settings.worker_lease_s


def scheduler_silence_s(settings: Settings) -> float:
    """How long a scheduler does, whose statements may be about many rows."""
    return 8 * settings.worker_lease_s


@dataclass(frozen=True)
class Runtime:
    settings: Settings
    database: Database
    hints: HintSender
    worker_id: str = field(default_factory=lambda: f"w_{secrets.token_hex(8)}")
    """A random name that a worker's children inherit: host names and process ids come again."""
    shared: Shared = field(default_factory=Shared)

    @property
    def holder(self) -> Holder:
        """This process, as it is known by the runs that it claims."""
        return Holder(self.worker_id, os.getpid())

    @property
    def expendable(self) -> bool:
        """This process is a child of a worker's pool: it runs one handler at a time, and is replaced if it dies."""
        return bool(current_process().name != "MainProcess")

    @classmethod
    def of(cls, settings: Settings) -> Runtime:
        """Connects to nothing yet: a fork may follow."""
        database = Database(
            settings.require_database_url(),
            pool_size=settings.database_pool_size,
            silence_s=silence_s(settings),
        )
        return cls(settings, database, HintSender(settings))
