"""The migrations and the tables must say the same, in both directions."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from onceonly_jobs.store import migrations, revisions
from onceonly_jobs.store.tables import metadata


def all_revisions() -> list[str]:
    script = ScriptDirectory(str(revisions.scripts_path()))
    return [step.revision for step in reversed(list(script.walk_revisions()))]


def differences(url: str) -> list[object]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def test_the_newest_file_is_the_newest_revision() -> None:
    assert revisions.head() == all_revisions()[-1]


def test_upgraded_schema_equals_the_tables(owner_url: str) -> None:
    assert differences(owner_url) == []


def test_a_forgotten_column_would_be_noticed(owner_url: str) -> None:
    engine = sa.create_engine(owner_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs DROP COLUMN progress")
    assert differences(owner_url) != []


@pytest.mark.parametrize("revision", all_revisions())
def test_each_step_goes_down_and_up_again(owner_url: str, revision: str) -> None:
    below = ScriptDirectory(str(revisions.scripts_path())).get_revision(revision).down_revision or "base"
    migrations.upgrade(owner_url, revision=revision)
    migrations.upgrade(owner_url, revision=str(below))
    assert migrations.current(owner_url) == (None if below == "base" else below)
    migrations.upgrade(owner_url)
    assert migrations.current(owner_url) == revisions.head()
    assert differences(owner_url) == []


def test_migrating_twice_changes_nothing(owner_url: str) -> None:
    migrations.upgrade(owner_url)
    assert migrations.current(owner_url) == revisions.head()


def test_the_serving_role_cannot_rewrite_the_audit_trail(database_url: str) -> None:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    for table in ("audit_decisions", "audit_outcomes", "policy_versions"):
        for attack in (f"DELETE FROM {table}", f"UPDATE {table} SET tenant_id = 'x'", f"TRUNCATE {table}"):
            with (
                engine.connect() as connection,
                pytest.raises(sa.exc.ProgrammingError, match="permission denied"),
            ):
                connection.exec_driver_sql(attack)


def test_the_serving_role_cannot_change_the_schema(database_url: str) -> None:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError):
        connection.exec_driver_sql("DROP TABLE runs")
