"""PostgreSQL 15, Redis and RabbitMQ as Debian packages them: private instances on the loopback address."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis
from amqp import Connection
from support.sdk_parts import Part

from onceonly_jobs.local.ports import free_port, is_free

POSTGRES_BIN = Path("/usr/lib/postgresql/15/bin")
RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one in the PATH insists on its own user
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
LOOPBACK = "127.0.0.1"


def missing_packages(*needed: str) -> list[str]:
    """Which of these Debian packages this machine does not have."""
    there = {
        "postgresql-15": (POSTGRES_BIN / "postgres").exists(),
        "pgbouncer": PGBOUNCER is not None,
        "redis-server": shutil.which("redis-server") is not None,
        "rabbitmq-server": RABBITMQ_SERVER.exists() and shutil.which("epmd") is not None,
    }
    return [name for name in needed if not there[name]]


class Postgres:
    """A cluster whose superuser asks for a password, as an installed one does."""

    def __init__(self, port: int, password: str) -> None:
        self._port, self._password = port, password

    def url(self, database: str, role: str = "postgres", password: str | None = None) -> str:
        return f"postgresql://{role}:{password or self._password}@{LOOPBACK}:{self._port}/{database}"

    @property
    def port(self) -> int:
        return self._port

    def behind(self, port: int) -> Postgres:
        """The same, through a pool that listens on that port."""
        return Postgres(port, self._password)

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A fresh cluster. Under root it runs as the user that the package made."""
    user = "postgres" if os.geteuid() == 0 else None
    # Not below pytest's own directory, which no other user can enter.
    with tempfile.TemporaryDirectory(prefix="onceonly-pg15-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        server = Postgres(free_port(), secrets.token_hex(12))
        password, data = directory / "password", directory / "data"
        password.write_text(server._password)
        if user is not None:
            for path in (directory, password):
                shutil.chown(path, user, user)
        made = subprocess.run(
            [
                *(str(POSTGRES_BIN / "initdb"), "-D", str(data), "-U", "postgres", f"--pwfile={password}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            cwd=directory,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        argv = [str(POSTGRES_BIN / "postgres"), "-D", str(data), "-h", LOOPBACK, "-p", str(server._port)]
        part = Part([*argv, "-k", "", "-F"], {}, directory / "postgres.log", directory, user)
        try:
            part.wait_until(server.answers)
            yield server
        finally:
            part.process.send_signal(signal.SIGINT)  # its fast shutdown
            part.stop()


@contextmanager
def pgbouncer(server: Postgres, roles: dict[str, str]) -> Iterator[Postgres]:
    """The same cluster behind a PgBouncer that gives each transaction whichever connection is free.

    roles: passwords of those who may come.
    """
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="onceonly-pgbouncer-", ignore_cleanup_errors=True) as name:
        directory, port = Path(name), free_port()
        users, config = directory / "users", directory / "pgbouncer.ini"
        users.write_text("".join(f'"{role}" "{password}"\n' for role, password in roles.items()))
        config.write_text(
            f"[databases]\n* = host={LOOPBACK} port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\n"
        )
        if user is not None:
            for path in (directory, users, config):
                shutil.chown(path, user, user)
        part = Part([str(PGBOUNCER), str(config)], {}, directory / "pgbouncer.log", directory, user)
        try:
            part.wait_until(lambda: not is_free(port))
            yield server.behind(port)
        finally:
            part.stop()


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """An empty Redis; its URL without a database number."""
    port = free_port()
    argv = [
        shutil.which("redis-server") or "",
        "--bind",
        LOOPBACK,
        "--port",
        str(port),
        "--dir",
        str(directory),
    ]
    part = Part([*argv, "--save", "", "--appendonly", "no"], {}, directory / "redis.log")
    url = f"redis://{LOOPBACK}:{port}"
    try:
        part.wait_until(lambda: _redis_answers(url))
        yield url
    finally:
        part.stop()


def _redis_answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def rabbitmq(directory: Path) -> Iterator[str]:
    """A RabbitMQ node with a port mapper, a cookie and a database of its own; its URL."""
    port, ports = free_port(), {"ERL_EPMD_PORT": str(free_port()), "ERL_EPMD_ADDRESS": LOOPBACK}
    configuration = directory / "rabbitmq.conf"
    configuration.write_text("disk_free_limit.absolute = 50MB\nlog.console.level = warning\n")
    env = {
        **ports,
        "HOME": str(directory),  # the cookie is made there
        "RABBITMQ_NODENAME": f"onceonly{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONFIG_FILE": str(configuration),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "generated"),
    }
    # Erlang would start the port mapper itself, as a daemon that outlives the node.
    mapper = Part([shutil.which("epmd") or ""], ports, directory / "epmd.log")
    try:
        mapper.wait_until(lambda: not is_free(int(ports["ERL_EPMD_PORT"])))
        node = Part([str(RABBITMQ_SERVER)], env, directory / "rabbitmq.log", directory)
        try:
            node.wait_until(lambda: _rabbitmq_answers(port))
            yield f"amqp://guest:guest@{LOOPBACK}:{port}//"
        finally:
            node.kill()
    finally:
        mapper.kill()


def _rabbitmq_answers(port: int) -> bool:
    with contextlib.suppress(OSError), Connection(f"{LOOPBACK}:{port}", connect_timeout=2):
        return True
    return False
