"""Which Celery app `worker` and `beat` serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from onceonly_jobs.cli.main import build
from onceonly_jobs.errors import ConfigError

ENV = {"ONCEONLY_DATABASE_URL": "postgresql://nowhere/db", "ONCEONLY_BROKER_URL": "redis://nowhere"}


def failure(name: str) -> BaseException | None:
    """What `worker` ends with that is told to serve this app."""
    return CliRunner().invoke(build(["worker"]), ["worker", "--app", name], env=ENV).exception


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module", "there is no module no_such_module"),
        ("json.no_such_part", "there is no module json.no_such_part"),
        ("json", "no Celery app is there"),
        ("json:dumps", "no Celery app is there"),
    ],
)
def test_an_app_that_is_not_there_is_told_in_a_line(name: str, reason: str) -> None:
    error = failure(name)
    assert isinstance(error, ConfigError)
    assert str(error) == f"--app {name}: {reason}"


@pytest.mark.parametrize(
    ("source", "kind"),
    [("import lacking_here", ModuleNotFoundError), ("import json; json.nope", AttributeError)],
)
def test_what_goes_wrong_in_an_app_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: type[Exception]
) -> None:
    (tmp_path / f"app_of_{kind.__name__.lower()}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert type(failure(f"app_of_{kind.__name__.lower()}")) is kind
