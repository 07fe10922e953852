"""Bringing a database's schema to a revision, from a checkout or from an installed wheel."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from onceonly_jobs.errors import ConfigError, SchemaBusy
from onceonly_jobs.store import schema_changes
from onceonly_jobs.store.database import connecting
from onceonly_jobs.store.revisions import scripts_path
from onceonly_jobs.store.tables import APPEND_ONLY, metadata

LOCK_TRIES = 10
"""How often a migration asks for a lock that traffic holds, before it gives up."""
PAUSE_S = 1.0
"""Between these, traffic that had to queue behind the migration goes on."""


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts_path()))
    config.attributes["url"] = url
    return config


def upgrade(
    owner_url: str, serving_url: str | None = None, revision: str = "head", lock_tries: int = LOCK_TRIES
) -> None:
    """Migrate as the tables' owner, and let the serving role use them if it is another one.

    `revision` may also be an older one: then the schema is taken back to it. Raises ConfigError for an
    unknown one, and SchemaBusy when traffic held a lock at each try: what was done until then stays, and the next
    call goes on from there.
    """
    for tries_left in reversed(range(lock_tries)):
        try:
            _migrate(owner_url, revision)
            break
        except DBAPIError as error:
            if not schema_changes.held_up(error):
                raise
            if not tries_left:
                raise SchemaBusy(
                    "a long transaction holds a lock that the migration needs; run it again"
                ) from error
            time.sleep(PAUSE_S)
    if serving_url is not None and (role := sa.make_url(serving_url).username) is not None:
        _grant(owner_url, role)


def _migrate(owner_url: str, revision: str) -> None:
    config = _config(owner_url)
    try:
        if revision != "head" and _is_behind(owner_url, revision):
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    except CommandError as error:
        raise ConfigError(f"cannot migrate to {revision}: {error}") from error


def _engine(url: str) -> sa.Engine:
    target, how = connecting(url)
    return sa.create_engine(target, connect_args=how, poolclass=sa.NullPool)


def current(url: str) -> str | None:
    """The revision a database is at; None when it was never migrated."""
    engine = _engine(url)
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _is_behind(url: str, revision: str) -> bool:
    """Whether `revision` is an ancestor of where the database is now."""
    at = current(url)
    if at is None or revision == at:
        return False
    if revision == "base":
        return True
    script = ScriptDirectory(str(scripts_path()))
    ancestors = {step.revision for step in script.iterate_revisions(at, "base")}
    resolved = script.get_revision(revision)
    return resolved is not None and resolved.revision in ancestors


def _grant(owner_url: str, role: str) -> None:
    """Let a serving role read and write, except for rewriting the audit trail."""
    if sa.make_url(owner_url).username == role:
        return
    engine = _engine(owner_url)
    quoted = engine.dialect.identifier_preparer.quote(role)
    with engine.connect() as connection:
        schema_changes.wait_until_alone(connection)
        existing = set(sa.inspect(connection).get_table_names())
        for table in metadata.sorted_tables:
            if table.name in existing:
                allowed = "SELECT, INSERT" if table in APPEND_ONLY else "SELECT, INSERT, UPDATE, DELETE"
                connection.execute(sa.text(f"GRANT {allowed} ON {table.name} TO {quoted}"))
        connection.execute(sa.text(f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {quoted}"))
        connection.execute(sa.text(f"GRANT SELECT ON alembic_version TO {quoted}"))
        connection.commit()
