"""What a torture of somebody's own deployment leaves in it, however it ends."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from onceonly_jobs.config import Settings
from onceonly_jobs.contracts.schedules import ScheduleRequest
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import ApiKeyDisabled
from onceonly_jobs.services import account, claims, schedules
from onceonly_jobs.store.database import Database
from onceonly_jobs.torture.suite import SCHEDULES
from onceonly_jobs.torture.system import System, running


@pytest.fixture
def given(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A deployment; the torture of it has no processes here."""
    monkeypatch.setattr(System, "_start_witness", lambda _: None)
    urls = {"database_url": settings.database_url, "broker_url": settings.broker_url}
    return Settings.load(**urls, secret_key="0123456789abcdef0123456789abcdef")


def make_schedules(given: Settings, db: Database, tenant: str) -> None:
    db.run(claims.announce, [JobSpec(name="echo", queue="q")])
    for name in SCHEDULES:
        request = ScheduleRequest(name=name, task="echo", every_s=1)
        db.run(schedules.create, "k", tenant, request, given)


def active(db: Database) -> list[str]:
    return [each.name for each in db.run(schedules.list_all, None, 100, 0)[1] if each.status == "active"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, None])
def test_its_schedules_are_paused_and_its_key_is_revoked(
    given: Settings, db: Database, tmp_path: Path, end: type[BaseException] | None
) -> None:
    with (
        nullcontext() if end is None else pytest.raises(end),
        running(tmp_path, given=given, apis=0, workers=0, beats=0) as system,
    ):
        make_schedules(given, db, system.tenant)
        assert active(db) == sorted(SCHEDULES)
        assert db.run(account.authenticate, system.api_key).tenant_id == system.tenant
        if end is not None:
            raise end
    assert active(db) == []
    with pytest.raises(ApiKeyDisabled):
        db.run(account.authenticate, system.api_key)


def test_what_could_not_be_paused_is_told_of(
    given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, given=given, apis=0, workers=0, beats=0) as system:
        monkeypatch.setattr(system, "database", Database("postgresql+psycopg://u@127.0.0.1:1/gone"))
    assert system.tenant in caplog.text
