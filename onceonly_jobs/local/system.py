"""What `onceonly-jobs up` starts, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onceonly_jobs.config import Settings, new_secret
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.local.datadir import open_data_dir, recall, remember, write_private
from onceonly_jobs.local.devenv import Running, read_dev_env, write_dev_env
from onceonly_jobs.local.embedded import EmbeddedServer
from onceonly_jobs.local.leftovers import end_leftovers
from onceonly_jobs.local.lock import exclusive
from onceonly_jobs.local.output import Output
from onceonly_jobs.local.parts import Addresses, parts, server
from onceonly_jobs.local.ports import LOOPBACK, check_can_listen, free_port
from onceonly_jobs.local.postgres import EmbeddedPostgres
from onceonly_jobs.local.reachable import check_broker, check_database
from onceonly_jobs.local.redis import EmbeddedRedis
from onceonly_jobs.local.supervisor import Stopped, Supervisor

FLOWER_PORT = 5555
METRICS_PORTS = {"worker": 9464, "scheduler": 9465}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line of `up` says. Port 0 is any free one."""

    host: str = LOOPBACK
    port: int = 8080
    data_dir: Path = Path(".onceonly")
    workers: int | None = None
    flower: bool = True


async def run(options: Options, output: Output, announce: Callable[[Running], None]) -> None:
    """Start everything, announce it when all of it answers, and run until a signal asks for the end.

    Raises ConfigError where something cannot start.
    """
    settings = Settings.load()
    data_dir = open_data_dir(options.data_dir)
    with exclusive(data_dir):
        end_leftovers(data_dir, lambda text: output.line("up", text))
        if options.port:
            check_can_listen(options.host, options.port)
        async with Supervisor(data_dir, output) as supervisor:
            try:
                announce(await _start(options, settings, data_dir, supervisor))
                await supervisor.wait()
            except Stopped:
                return


async def _start(options: Options, given: Settings, data_dir: Path, supervisor: Supervisor) -> Running:
    """Servers, then migrations, then the parts; returns when each of them answers."""
    settings = await _start_servers(given, data_dir, supervisor)
    await asyncio.to_thread(_migrate, settings)
    dev_env = data_dir / "dev.env"
    api_key = await asyncio.to_thread(_dev_key, settings, read_dev_env(dev_env).get("ONCEONLY_API_KEY"))
    addresses = Addresses(
        host=options.host,
        port=options.port or free_port(),
        flower_port=_flower_port(data_dir, options.port) if options.flower else None,
        worker_metrics_port=settings.worker_metrics_port or _metrics_port(data_dir, "worker"),
        scheduler_metrics_port=settings.scheduler_metrics_port or _metrics_port(data_dir, "scheduler"),
    )
    await supervisor.start(*parts(settings, addresses, data_dir, options.workers))
    running = Running.of(settings, addresses, api_key, dev_env)
    write_dev_env(running)
    return running


async def _start_servers(given: Settings, data_dir: Path, supervisor: Supervisor) -> Settings:
    """Embedded servers where no URL is set; the others must be reachable. Returns settings with every URL."""
    urls = {"database_url": given.database_url, "broker_url": given.broker_url}
    urls["migration_database_url"] = given.migration_database_url or given.database_url
    if given.database_url is not None:
        await asyncio.to_thread(check_database, given)
    if given.broker_url is not None:
        await asyncio.to_thread(check_broker, given.broker_url)
    servers: list[EmbeddedServer] = []
    if given.database_url is None:
        postgres = await asyncio.to_thread(EmbeddedPostgres, data_dir)
        urls |= {"database_url": postgres.app_url, "migration_database_url": postgres.owner_url}
        servers.append(postgres)
    if given.broker_url is None:
        redis = await asyncio.to_thread(EmbeddedRedis, data_dir)
        urls["broker_url"] = redis.url
        servers.append(redis)
    await supervisor.start(*(server(one, data_dir) for one in servers))
    for one in servers:
        await asyncio.to_thread(one.on_ready)
        if isinstance(one, EmbeddedPostgres) and one.is_new:
            await asyncio.to_thread(one.sync)
    return Settings.load(**urls, secret_key=given.secret_key or _secret_key(data_dir / "secret.key"))


def _migrate(settings: Settings) -> None:
    from onceonly_jobs.store.migrations import upgrade

    serving_url = settings.require_database_url()
    owner_url = settings.owner_database_url
    upgrade(owner_url, serving_url if serving_url != owner_url else None)


def _dev_key(settings: Settings, previous: str | None) -> str:
    from onceonly_jobs.local.bootstrap import ensure_dev_key

    key: str = ensure_dev_key(settings, previous)
    return key


def _secret_key(path: Path) -> str:
    """The key of this data directory, made at its first start."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        secret = new_secret()
        write_private(path, secret + "\n")
        return secret
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _flower_port(data_dir: Path, api_port: int) -> int:
    return _kept_port(data_dir / "flower.json", FLOWER_PORT, other_than=api_port)


def _metrics_port(data_dir: Path, part: str) -> int:
    return _kept_port(data_dir / f"{part}-metrics.json", METRICS_PORTS[part])


def _kept_port(path: Path, usual: int, other_than: int | None = None) -> int:
    """The usual port where it is free, else one that stays the same from start to start."""
    preferred = recall(path).get("port", usual)
    port = free_port(preferred if preferred != other_than else None)
    remember(path, {"port": port})
    return port
