"""Real PostgreSQL and Redis servers for the length of a `with` block.

    with embedded_postgres(Path("data")) as postgres, embedded_redis(Path("data")) as redis:
        print(postgres.app_url, redis.url)

Both are also plain objects: `start()`, `stop()`, `kill()`, `restart()`; the supervisor runs their `argv`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from onceonly_jobs.local.postgres import EmbeddedPostgres
from onceonly_jobs.local.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "embedded_postgres", "embedded_redis"]


@contextmanager
def embedded_postgres(
    data_dir: Path, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL with the database `onceonly` and its two roles; data stays in the directory.

    settings are added to the server's, by their postgresql.conf names.
    """
    with EmbeddedPostgres(data_dir, settings) as server:
        yield server


@contextmanager
def embedded_redis(data_dir: Path) -> Iterator[EmbeddedRedis]:
    """A running, empty Redis."""
    with EmbeddedRedis(data_dir) as server:
        yield server
