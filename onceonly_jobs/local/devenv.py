"""`<data-dir>/dev.env`: how programs on this machine reach the system. For a shell and for dotenv alike."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from onceonly_jobs.config import Settings
from onceonly_jobs.local.datadir import write_private
from onceonly_jobs.local.parts import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A system that answers."""

    path: Path
    api_url: str
    metrics_urls: list[str]
    variables: dict[str, str]

    @classmethod
    def of(cls, settings: Settings, addresses: Addresses, api_key: str, path: Path) -> Self:
        known = {
            "ONCEONLY_BASE_URL": f"{addresses.api_url}/v1",
            "ONCEONLY_API_KEY": api_key,
            "ONCEONLY_DATABASE_URL": settings.database_url,
            "ONCEONLY_BROKER_URL": settings.broker_url,
            "ONCEONLY_FLOWER_URL": addresses.flower_url,
            "ONCEONLY_REDIS_URL": settings.redis_url,
            "ONCEONLY_MIGRATION_DATABASE_URL": settings.migration_database_url,
            "ONCEONLY_SECRET_KEY": settings.secret_key,
        }
        variables = {name: value for name, value in known.items() if value}
        urls = addresses.metrics_urls(settings.metrics_host)
        return cls(path=path, api_url=addresses.api_url, metrics_urls=urls, variables=variables)

    @property
    def base_url(self) -> str:
        return self.variables["ONCEONLY_BASE_URL"]

    @property
    def flower_url(self) -> str | None:
        return self.variables.get("ONCEONLY_FLOWER_URL")


def write_dev_env(running: Running) -> None:
    """Replace the file at once, readable by its owner only."""
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in running.variables.items()]
    write_private(running.path, "".join(lines))


def read_dev_env(path: Path) -> dict[str, str]:
    """The variables of the file; empty where there is none yet."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}
