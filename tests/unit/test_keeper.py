"""What keeps a claim is in place before the handler is called."""

from __future__ import annotations

import faulthandler
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.claims import make_claim

from onceonly_jobs.config import Settings
from onceonly_jobs.worker.interrupt import Interrupt
from onceonly_jobs.worker.keeper import Keeper
from onceonly_jobs.worker.runtime import Runtime


def test_a_handler_that_holds_the_interpreter_from_its_start_on_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine the keeper's thread may not have run by then."""
    done: list[str] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: done.append("watched"))
    monkeypatch.setattr(threading.Thread, "start", lambda _: done.append("started"))
    runtime: Any = SimpleNamespace(settings=Settings.load(), expendable=True)
    Keeper(cast(Runtime, runtime), make_claim(), Interrupt()).start()
    assert done == ["watched", "started"]
