"""A group of `onceonly-jobs` commands, in this process."""

from __future__ import annotations

from collections.abc import Callable

from typer.testing import CliRunner

from onceonly_jobs.cli.main import build
from onceonly_jobs.errors import ConfigError

Command = Callable[..., str]


def commands(group: str) -> Command:
    """Runs those of a group. What they refuse, the command line shows in one line, and ends with status 2."""

    def run(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(build([group]), [group, *words])
        if status == 2:
            assert isinstance(done.exception, ConfigError), done.output
            return str(done.exception)
        assert done.exit_code == status, (done.output, done.exception)
        return done.output

    return run
