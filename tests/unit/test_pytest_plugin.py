"""The fixtures for users' suites, in a suite of somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = "onceonly_jobs.pytest_plugin"

USERS_SUITE = """
import pytest
from onceonly_jobs import OnceOnly


def test_a_client_has_a_namespace_of_its_own(onceonly_client):
    assert not onceonly_client.check_lock("evt").duplicate
    assert onceonly_client.check_lock("evt").duplicate


def test_the_code_under_test_finds_the_same_one(onceonly_client):
    assert not onceonly_client.check_lock("evt").duplicate
    assert OnceOnly().check_lock("evt").duplicate


def test_time_can_pass(onceonly_client, onceonly_clock):
    onceonly_client.check_lock("evt", ttl=3600)
    onceonly_clock.advance(3601)
    assert not onceonly_client.check_lock("evt").duplicate


def test_and_is_the_real_one_again(onceonly_client, onceonly_system):
    import sqlalchemy as sa
    with sa.create_engine(onceonly_system.owner_url).connect() as connection:
        moved = sa.text("SELECT extract(epoch FROM onceonly_now() - statement_timestamp())")
        assert connection.execute(moved).scalar_one() == 0
"""

UNUSED = """
import sys


def test_nothing_of_it_is_loaded():
    loaded = {name for name in sys.modules if name.startswith("onceonly_jobs")}
    assert loaded == {"onceonly_jobs", "onceonly_jobs.pytest_plugin"}
"""


def _pytest(directory: Path, suite: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_users.py").write_text(suite)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "ONCEONLY"))}
    argv = [sys.executable, "-P", "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider"]
    for other in ("celery", "pytest_celery", "docker_tools", "timeout", "xdist", "anyio", "hypothesispytest"):
        argv += ["-p", f"no:{other}"]
    return subprocess.run(
        [*argv, "--rootdir", str(directory), str(directory)],
        cwd=directory,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_suite_gets_a_system_by_asking_for_it(tmp_path: Path) -> None:
    done = _pytest(tmp_path, USERS_SUITE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_a_suite_that_does_not_ask_loads_nothing(tmp_path: Path) -> None:
    done = _pytest(tmp_path, UNUSED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pytest_finds_the_plugin_by_its_modules_name() -> None:
    """So that naming it in a conftest too does not register it twice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}


TOLD_TO_END = """
import signal
from pathlib import Path

from onceonly_jobs.local import fresh_system


class Light(fresh_system.FreshSystem):
    def start(self):
        Path("system").touch()

    def stop(self):
        Path("system").unlink()


fresh_system.FreshSystem = Light


def test_it_is_told_to_end(onceonly_system):
    assert Path("system").exists()
    signal.raise_signal(signal.SIGTERM)


def test_no_other_one_is_run():
    Path("another").touch()
"""


def test_a_suite_that_is_told_to_end_ends_its_system(tmp_path: Path) -> None:
    done = _pytest(tmp_path, TOLD_TO_END)
    assert done.returncode == 128 + signal.SIGTERM, done.stdout + done.stderr
    assert not (tmp_path / "system").exists()
    assert not (tmp_path / "another").exists()
