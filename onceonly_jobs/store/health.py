"""What a database says of itself."""

from __future__ import annotations

import sqlalchemy as sa

from onceonly_jobs.store.statement import Statement

_MIGRATED = sa.text("SELECT to_regclass('alembic_version') IS NOT NULL")


def is_migrated() -> Statement[bool]:
    """Whether any migration ever ran here."""
    return Statement("health.is_migrated", _MIGRATED, lambda r: bool(r.scalar_one()))


_REVISION = sa.text("SELECT version_num FROM alembic_version")


def revision() -> Statement[str | None]:
    """The schema's revision; only where is_migrated."""
    return Statement("health.revision", _REVISION, lambda r: r.scalar_one_or_none())


_SERVER = sa.text("SELECT current_setting('server_version_num')::int")


def server_version() -> Statement[int]:
    """PostgreSQL's version as a number, like 150018."""
    return Statement("health.server_version", _SERVER, lambda r: int(r.scalar_one()))
