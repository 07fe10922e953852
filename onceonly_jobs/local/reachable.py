"""Whether the servers that the URLs name can be used: told before anything is started."""

from __future__ import annotations

from urllib.parse import urlsplit

from onceonly_jobs.config import Settings
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.store.database import connecting

TIMEOUT_S = 5


def check_database(settings: Settings) -> None:
    """Raises ConfigError, naming the variable, where a configured Postgres cannot be used."""
    _connect("ONCEONLY_DATABASE_URL", settings.require_database_url())
    if settings.migration_database_url is not None:
        _connect("ONCEONLY_MIGRATION_DATABASE_URL", settings.owner_database_url)


def _connect(variable: str, url: str) -> None:
    import psycopg

    try:
        target = connecting(url)[0].set(drivername="postgresql").render_as_string(hide_password=False)
        psycopg.connect(target, connect_timeout=TIMEOUT_S).close()
    except psycopg.Error as error:
        raise ConfigError(f"{variable}: cannot connect to {_place(url)}: {_first_line(error)}") from None


def check_broker(url: str) -> None:
    """Raises ConfigError where the configured broker cannot be used."""
    from kombu.connection import Connection

    try:
        with Connection(url, connect_timeout=TIMEOUT_S) as connection:  # type: ignore[no-untyped-call]
            connection.ensure_connection(max_retries=1, timeout=TIMEOUT_S)
            connection.default_channel.close()  # for Redis, the channel is what connects
    except Exception as error:  # each transport has errors of its own
        raise ConfigError(
            f"ONCEONLY_BROKER_URL: cannot connect to {_place(url)}: {_first_line(error)}"
        ) from None


def _place(url: str) -> str:
    """The URL without user, password and options."""
    split = urlsplit(url)
    return f"{split.hostname or split.path}{f':{split.port}' if split.port else ''}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
