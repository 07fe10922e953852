"""The operator's commands, run as commands against a real database and broker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from onceonly_jobs.domain.plans import Plan
from onceonly_jobs.errors import ApiKeyDisabled
from onceonly_jobs.services import account
from onceonly_jobs.store.database import Database


class CommandLine:
    """`onceonly-jobs` with these settings."""

    def __init__(self, **settings: str) -> None:
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ONCEONLY_")} | settings

    def __call__(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "onceonly_jobs.cli.main", *words],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + (done.stderr if status else "")


@pytest.fixture
def command(owner_url: str, database_url: str, redis_url: str) -> CommandLine:
    return CommandLine(
        ONCEONLY_DATABASE_URL=database_url,
        ONCEONLY_MIGRATION_DATABASE_URL=owner_url,
        ONCEONLY_BROKER_URL=redis_url,
    )


def test_a_key_works_from_its_making_to_its_revocation(command: CommandLine, db: Database) -> None:
    api_key = command("keys", "create", "--tenant", "shop", "--plan", "pro").strip()
    caller = db.run(account.authenticate, api_key)
    assert (caller.tenant_id, caller.plan) == ("shop", Plan.PRO)
    listed = command("keys", "list", "--tenant", "shop")
    assert caller.key_id in listed
    assert api_key not in listed
    command("keys", "revoke", caller.key_id)
    with pytest.raises(ApiKeyDisabled):
        db.run(account.authenticate, api_key)


def test_a_tenants_plan_is_never_changed_in_passing(command: CommandLine, db: Database) -> None:
    command("tenants", "create", "shop", "--plan", "free")
    assert "is on plan free" in command("keys", "create", "--tenant", "shop", "--plan", "agency", status=2)
    api_key = command("keys", "create", "--tenant", "shop").strip()
    command("tenants", "plan", "shop", "agency")
    assert db.run(account.authenticate, api_key).plan is Plan.AGENCY
    assert "shop" in command("tenants", "list")


def test_a_disabled_tenants_keys_are_refused_until_it_is_enabled(command: CommandLine, db: Database) -> None:
    api_key = command("keys", "create", "--tenant", "shop").strip()
    command("tenants", "disable", "shop")
    with pytest.raises(ApiKeyDisabled):
        db.run(account.authenticate, api_key)
    command("tenants", "enable", "shop")
    assert db.run(account.authenticate, api_key).tenant_id == "shop"


def test_the_schema_goes_to_any_revision_and_back(command: CommandLine) -> None:
    assert "schema is at base" in command("migrate", "--to", "base")
    assert "schema is at 0001" in command("migrate", "--to", "0001")
    command("migrate")
    command("keys", "create")


def test_the_doctor_says_what_is_wrong(command: CommandLine) -> None:
    found = command("doctor", status=1)
    assert "ok" in found
    assert "workers: none answers" in found
    assert "jobs: no worker has registered" in found
    command("migrate", "--to", "base")
    assert "run `onceonly-jobs migrate`" in command("doctor", status=1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keys", "revoke", "key_nope"], "no API key with the id 'key_nope'"),
        (["tenants", "plan", "nope", "pro"], "no tenant named 'nope'"),
        (["keys", "create", "--rate-limit", "often"], "is not a rate"),
        (["migrate", "--to", "9999"], "9999"),
    ],
)
def test_a_mistake_is_one_clear_line(command: CommandLine, words: list[str], says: str) -> None:
    said = command(*words, status=2)
    assert says in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_database_that_does_not_answer_is_one_clear_line() -> None:
    command = CommandLine(ONCEONLY_DATABASE_URL="postgresql://nobody:x@127.0.0.1:1/none")
    said = command("keys", "list", status=2)
    assert "Traceback" not in said
    assert said.startswith("error: ")
