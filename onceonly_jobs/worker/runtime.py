"""What a worker process has at hand for its runs."""

from __future__ import annotations

from dataclasses import dataclass

from billiard.process import current_process

from onceonly_jobs.config import Settings
from onceonly_jobs.dispatch.hints import HintSender
from onceonly_jobs.store.database import Database


@dataclass(frozen=True)
class Runtime:
    settings: Settings
    database: Database
    hints: HintSender

    @property
    def expendable(self) -> bool:
        """This process is a child of a worker's pool: it runs one handler at a time, and is replaced if it dies."""
        return bool(current_process().name != "MainProcess")

    @classmethod
    def of(cls, settings: Settings) -> Runtime:
        """Connects to nothing yet: a fork may follow."""
        database = Database(settings.require_database_url(), pool_size=settings.database_pool_size)
        return cls(settings, database, HintSender(settings))
