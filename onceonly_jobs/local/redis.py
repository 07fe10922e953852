"""An embedded Redis: it carries hints only, so it keeps nothing on the disk."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import ClassVar

from onceonly_jobs.config import new_secret
from onceonly_jobs.local.binaries import redis_server
from onceonly_jobs.local.datadir import open_data_dir, recall, remember, write_private
from onceonly_jobs.local.embedded import EmbeddedServer
from onceonly_jobs.local.ports import LOOPBACK, free_port

CONFIG = """\
bind {host}
port {port}
requirepass {password}
daemonize no
appendonly no
save ""
dir ./
logfile ""
loglevel warning
maxmemory-policy noeviction
"""


class EmbeddedRedis(EmbeddedServer):
    """A Redis with its password and port in `<data_dir>/redis.json`."""

    name: ClassVar[str] = "redis"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, data_dir: Path) -> None:
        """Prepare the data directory; nothing runs yet."""
        super().__init__()
        self.cwd = open_data_dir(data_dir)
        known = recall(self.cwd / "redis.json")
        self._password: str = known.get("password") or new_secret()
        self.port = free_port(known.get("port"))
        remember(self.cwd / "redis.json", {"password": self._password, "port": self.port})
        config = CONFIG.format(host=LOOPBACK, port=self.port, password=self._password)
        write_private(self.cwd / "redis.conf", config)  # a file, because every user can read a command line
        self.argv = [str(redis_server()), str(self.cwd / "redis.conf")]

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    def is_ready(self) -> bool:
        from redis import Redis, RedisError

        try:
            with Redis.from_url(self.url, socket_timeout=2) as connection:
                return bool(connection.ping())
        except RedisError:
            return False
