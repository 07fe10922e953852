"""The files that tell how a process does, and the thread of a worker that keeps one of them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onceonly_jobs.config import Settings
from onceonly_jobs.worker import presence as presence_module
from onceonly_jobs.worker.files import ALIVE_FILE, remove, touch
from onceonly_jobs.worker.presence import Presence


def test_a_file_that_cannot_be_touched_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone" / "alive"
    monkeypatch.setenv(ALIVE_FILE, str(path))
    for _ in range(2):
        touch(ALIVE_FILE)
        remove(ALIVE_FILE)
    (told,) = caplog.messages
    assert ALIVE_FILE in told
    assert str(path) in told
    path.parent.mkdir()
    touch(ALIVE_FILE)
    assert path.exists()
    remove(ALIVE_FILE)
    assert not path.exists()


def test_presence_outlives_whatever_fails_in_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.load(database_url="postgresql://nobody@127.0.0.1:1/nothing")
    runtime: Any = SimpleNamespace(settings=settings, shared=SimpleNamespace(draining=True))
    presence = Presence(runtime, consumer=None, jobs=[])
    looks = iter([RuntimeError("no reason"), RuntimeError("no reason"), None])

    def look(_variable: str) -> None:
        if (error := next(looks)) is not None:
            raise error
        presence._over.set()

    monkeypatch.setattr(presence_module, "touch", look)
    monkeypatch.setattr(presence_module, "REPORT_S", 0)
    monkeypatch.setattr(presence, "_report", lambda: None)
    presence._run()
    assert next(looks, "all seen") == "all seen"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
