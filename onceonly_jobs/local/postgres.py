"""An embedded PostgreSQL: made with `initdb`, listening on the loopback address only, durable."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from onceonly_jobs.config import new_secret
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.binaries import postgres_bin
from onceonly_jobs.local.datadir import open_data_dir, recall, remember, write_private
from onceonly_jobs.local.embedded import STOP_TIMEOUT_S, EmbeddedServer
from onceonly_jobs.local.leftovers import MARK
from onceonly_jobs.local.ports import LOOPBACK, free_port
from onceonly_jobs.local.privilege import launcher

DATABASE = "onceonly"
SUPERUSER = "postgres"
OWNER = "onceonly_owner"
APP = "onceonly_app"

SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a socket's path must be short, and a data directory's need not be
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "jit": "off",  # the statements are short; compiling them takes longer than running them
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "",
}

INITDB_OPTIONS = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync")


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL in `<data_dir>/postgres`, its passwords and port in `<data_dir>/postgres.json`."""

    name: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": ends sessions, then a checkpoint

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        """Prepare the data directory; nothing runs yet. settings (postgresql.conf) win over SETTINGS."""
        super().__init__()
        self.cwd = open_data_dir(data_dir)
        self._cluster = self.cwd / "postgres"
        self._bin = postgres_bin(_major(self._cluster))
        self._memory = self._recall()
        self.is_new = not (self._cluster / "PG_VERSION").exists()
        if self.is_new:
            self._create_cluster()
        options = {**SETTINGS, **(settings or {})}
        command = [str(self._bin / "postgres"), "-D", str(self._cluster), "-p", str(self._memory["port"])]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self.argv = self._as_ordinary_user(command)

    @property
    def owner_url(self) -> str:
        """The database as the owner of its tables, for migrations."""
        return self._url(OWNER, DATABASE)

    @property
    def app_url(self) -> str:
        """The database as the API and the workers see it: no right to change its tables' shape."""
        return self._url(APP, DATABASE)

    @property
    def superuser_url(self) -> str:
        """The server's own `postgres` database as superuser, for tests that make databases."""
        return self._url(SUPERUSER, "postgres")

    def is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.superuser_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def on_ready(self) -> None:
        """Make the two roles and the database where they are missing."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            for role in (OWNER, APP):
                known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
                if known is None:
                    password = sql.Literal(self._memory[role])
                    statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                    connection.execute(statement.format(sql.Identifier(role), password))
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if known is None:
                names = sql.Identifier(DATABASE), sql.Identifier(OWNER)
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))

    def sync(self) -> None:
        """Bring what `initdb` wrote to the disk, which it does not wait for itself. For a new cluster."""
        self._run_initdb(["--sync-only", "-D", str(self._cluster)])

    def stop_immediately(self) -> None:
        """End it as `pg_ctl stop -m immediate` does: sessions are cut, and the next start recovers from the log."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def _url(self, role: str, database: str) -> str:
        return f"postgresql://{role}:{self._memory[role]}@{LOOPBACK}:{self._memory['port']}/{database}"

    def _recall(self) -> dict[str, Any]:
        """Port and passwords: those of the last start where it left any, the port only where still free."""
        path = self.cwd / "postgres.json"
        known = recall(path)
        memory = {role: known.get(role) or new_secret() for role in (SUPERUSER, OWNER, APP)}
        memory["port"] = free_port(known.get("port"))
        if memory != known:
            remember(path, memory)
        return memory

    def _create_cluster(self) -> None:
        """Run `initdb` beside the final place, so a cluster that exists is always a whole one."""
        fresh = self.cwd / "postgres.new"
        password = self.cwd / "postgres.password"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        write_private(password, self._memory[SUPERUSER])
        try:
            if os.geteuid() == 0:
                for path in (fresh, password):
                    os.chown(path, *ordinary_user(self._cluster))
            self._run_initdb(["-D", str(fresh), "-U", SUPERUSER, f"--pwfile={password}", *INITDB_OPTIONS])
            fresh.replace(self._cluster)
        finally:
            password.unlink()

    def _run_initdb(self, arguments: list[str]) -> None:
        command = self._as_ordinary_user([str(self._bin / "initdb"), *arguments])
        env = {
            **os.environ,
            MARK: str(self.cwd),
        }  # should it outlive us, the next start ends it
        done = subprocess.run(command, cwd=self.cwd, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = " / ".join(done.stderr.strip().splitlines()[-3:])
            raise ConfigError(f"cannot make a PostgreSQL data directory: {words}")

    def _as_ordinary_user(self, command: list[str]) -> list[str]:
        if os.geteuid() != 0:
            return command
        return launcher(*ordinary_user(self._cluster), reach=[self.cwd]) + command


def ordinary_user(cluster: Path) -> tuple[int, int]:
    """The user and group to run PostgreSQL as under root: the cluster's owner, else `nobody` or `daemon`."""
    if cluster.exists() and cluster.stat().st_uid != 0:
        return cluster.stat().st_uid, cluster.stat().st_gid
    for name in ("nobody", "daemon"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ConfigError(
        "PostgreSQL does not run as root, and this machine has no user `nobody`: start as another user"
    )


def _major(cluster: Path) -> str | None:
    try:
        return (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return None
