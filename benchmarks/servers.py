"""One PostgreSQL and one Redis for everything that is measured, each system with a database of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg
import redis
from psycopg import sql

from onceonly_jobs.local.servers import EmbeddedPostgres, EmbeddedRedis

SHOWN = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "wal_level")


class Servers:
    """Real servers as `onceonly-jobs up` runs them; settings are added to PostgreSQL's."""

    def __init__(self, directory: Path, settings: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.postgres = EmbeddedPostgres(directory, settings)
        self.redis = EmbeddedRedis(directory)
        self._stack = ExitStack()
        self._redis_databases: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self.redis)
        self._stack.enter_context(self.postgres)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def database(self, name: str) -> str:
        """The URL of an empty database, as superuser. Drops the one that had this name."""
        base = self.postgres.superuser_url
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return base.rpartition("/")[0] + f"/{name}"

    def redis_database(self, name: str) -> str:
        """The URL of a Redis database of its own: 0 is ours. Emptied."""
        number = self._redis_databases.setdefault(name, 1 + len(self._redis_databases))
        url = self.redis.url.rpartition("/")[0] + f"/{number}"
        with redis.Redis.from_url(url) as connection:
            connection.flushdb()
        return url

    def postgres_processes(self) -> list[psutil.Process]:
        """The server and its back ends."""
        return _tree("postgres")

    def redis_processes(self) -> list[psutil.Process]:
        return _tree("redis-server")

    def settings(self) -> dict[str, str]:
        """What matters of PostgreSQL's settings, as the server says."""
        with psycopg.connect(self.postgres.superuser_url) as connection:
            rows = connection.execute(
                "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [list(SHOWN)]
            ).fetchall()
        return {str(name): str(value) for name, value in rows}

    def versions(self) -> dict[str, str]:
        with psycopg.connect(self.postgres.superuser_url) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        with redis.Redis.from_url(self.redis.url) as connection:
            info = connection.info("server")
        return {
            "PostgreSQL": str(row[0]) if row else "unknown",
            "Redis": str(info["redis_version"]),
        }


def _tree(name: str) -> list[psutil.Process]:
    """The child of ours with this name, and its descendants."""
    for child in psutil.Process().children():
        if child.name() == name:
            return [child, *child.children(recursive=True)]
    return []
