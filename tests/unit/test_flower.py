"""Who Flower lets in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from onceonly_jobs.cli import up
from onceonly_jobs.errors import ConfigError

OPEN = ("0.0.0.0", "::", "", "10.1.2.3", "monitor.example.com")
LOOPBACK = ("127.0.0.1", "127.0.0.2", "::1", "localhost")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[str], dict[str, str]]]:
    """Command lines and environments of what `flower` would have become."""
    for name in [name for name in os.environ if name.startswith("FLOWER_")]:
        monkeypatch.delenv(name)
    found: list[tuple[Sequence[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: found.append((argv, dict(env))))
    return found


@pytest.mark.parametrize("address", OPEN)
def test_it_does_not_start_where_anybody_could_come_in(started: list[object], address: str) -> None:
    with pytest.raises(ConfigError, match=r"^ONCEONLY_FLOWER_AUTH: .*--no-auth"):
        up.flower(address=address)
    assert started == []


@pytest.mark.parametrize("address", LOOPBACK)
def test_on_loopback_it_needs_no_password(
    started: list[tuple[list[str], dict[str, str]]], address: str
) -> None:
    up.flower(address=address)
    ((argv, env),) = started
    assert f"--address={address}" in argv
    assert "FLOWER_BASIC_AUTH" not in env
    assert "FLOWER_UNAUTHENTICATED_API" not in env
    assert "kwargs" in env["FLOWER_TASKS_COLUMNS"]


def test_the_password_is_asked_for_and_not_in_the_list_of_processes(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONCEONLY_FLOWER_AUTH", "ops:long-enough")
    up.flower(address="0.0.0.0")
    ((argv, env),) = started
    assert env["FLOWER_BASIC_AUTH"] == "ops:long-enough"
    assert "long-enough" not in " ".join(argv)


@pytest.mark.parametrize("name", ["FLOWER_BASIC_AUTH", "FLOWER_AUTH"])
def test_its_own_ways_to_ask_count_too(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "somebody")
    up.flower(address="0.0.0.0")
    assert started[0][1][name] == "somebody"


def test_something_in_front_may_ask_instead(started: list[object]) -> None:
    up.flower(address="0.0.0.0", no_auth=True)
    assert len(started) == 1


@pytest.mark.parametrize("value", ["ops", "ops:short", "ops:with,comma1", ":long-enough"])
def test_a_password_that_would_not_work_is_refused(value: str) -> None:
    command = [sys.executable, "-m", "onceonly_jobs.cli.main", "flower"]
    env = {**os.environ, "ONCEONLY_FLOWER_AUTH": value}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ONCEONLY_FLOWER_AUTH: ")
    assert value not in done.stderr
