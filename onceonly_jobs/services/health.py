"""Whether the database is there and fits this code."""

from __future__ import annotations

from onceonly_jobs.store import health
from onceonly_jobs.store.statement import Operation, autocommit


@autocommit
def schema_revision() -> Operation[str | None]:
    """The revision the database is at; None when it was never migrated."""
    migrated = yield from health.is_migrated()
    if not migrated:
        return None
    return (yield from health.revision())


@autocommit
def server_version() -> Operation[int]:
    """PostgreSQL's version as a number, like 150018."""
    return (yield from health.server_version())
