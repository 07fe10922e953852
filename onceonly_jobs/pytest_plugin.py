"""pytest fixtures for suites that use OnceOnly: a real system, quick, and thrown away.

    def test_webhook(onceonly_client):
        assert not onceonly_client.check_lock("evt_1").duplicate

Found by pytest by itself where `onceonly-jobs[all]` is installed. Nothing is started, or imported, before a test
asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from onceonly_jobs.client import OnceOnly
    from onceonly_jobs.local.fresh_system import FreshSystem
    from onceonly_jobs.testing import Clock


@pytest.fixture(scope="session")
def onceonly_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshSystem]:
    """PostgreSQL, Redis and the API, for the session: `base_url`, `new_key()`, `start_worker()`, `environment`."""
    try:
        from onceonly_jobs.local.fresh_system import FreshSystem
        from onceonly_jobs.local.unwinding import unwound_by_signals
    except ModuleNotFoundError as missing:
        pytest.fail(f"{missing.name} is not installed: pip install 'onceonly-jobs[all]'", pytrace=False)
    with (
        unwound_by_signals(_end_session),
        FreshSystem(tmp_path_factory.mktemp("onceonly") / "data") as system,
    ):
        yield system


def _end_session(number: int) -> None:
    """As Ctrl-C would, fixtures included: the system would outlive a session that is simply gone."""
    pytest.exit(f"ended by signal {number}", returncode=128 + number)


@pytest.fixture
def onceonly_client(onceonly_system: FreshSystem, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnceOnly]:
    """A client of a namespace of the test's own. `OnceOnly()` in the code under test finds the same one."""
    from onceonly_jobs.client import OnceOnly

    monkeypatch.setenv("ONCEONLY_API_KEY", onceonly_system.new_key())
    monkeypatch.setenv("ONCEONLY_BASE_URL", onceonly_system.base_url)
    with OnceOnly(fail_open=False) as client:
        yield client


@pytest.fixture(scope="session")
def _onceonly_clock(onceonly_system: FreshSystem) -> Clock:
    from onceonly_jobs.testing import Clock

    return Clock(onceonly_system.owner_url)


@pytest.fixture
def onceonly_clock(_onceonly_clock: Clock) -> Iterator[Clock]:
    """Moves the system's time, `advance(seconds)`, until the end of the test: locks and leases run out at once."""
    yield _onceonly_clock
    _onceonly_clock.reset()
