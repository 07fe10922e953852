"""Bringing a database's schema to a revision, from a checkout or from an installed wheel."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from onceonly_jobs.errors import ConfigError
from onceonly_jobs.store.tables import APPEND_ONLY, metadata


def scripts_path() -> Path:
    """The migrations folder: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts_path()))
    config.attributes["url"] = url
    return config


def upgrade(owner_url: str, serving_url: str | None = None, revision: str = "head") -> None:
    """Migrate as the tables' owner, and let the serving role use them if it is another one.

    `revision` may also be an older one: then the schema is taken back to it. Raises ConfigError for an
    unknown one.
    """
    config = _config(owner_url)
    try:
        if revision != "head" and _is_behind(owner_url, revision):
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    except CommandError as error:
        raise ConfigError(f"cannot migrate to {revision}: {error}") from error
    if serving_url is not None and (role := sa.make_url(serving_url).username) is not None:
        _grant(owner_url, role)


def current(url: str) -> str | None:
    """The revision a database is at; None when it was never migrated."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The newest revision that this code knows."""
    newest = ScriptDirectory(str(scripts_path())).get_current_head()
    assert newest is not None, "there is at least one migration"  # noqa: S101
    return newest


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
    engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
    quoted = engine.dialect.identifier_preparer.quote(role)
    with engine.begin() as connection:
        existing = set(sa.inspect(connection).get_table_names())
        for table in metadata.sorted_tables:
            if table.name in existing:
                allowed = "SELECT, INSERT" if table in APPEND_ONLY else "SELECT, INSERT, UPDATE, DELETE"
                connection.execute(sa.text(f"GRANT {allowed} ON {table.name} TO {quoted}"))
        connection.execute(sa.text(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {quoted}"))
        connection.execute(sa.text(f"GRANT SELECT ON alembic_version TO {quoted}"))
