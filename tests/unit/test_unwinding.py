"""What has started a system ends it when it is told to end, and not by Ctrl-C alone."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from onceonly_jobs.cli import demo, examples, torture
from onceonly_jobs.cli.main import build
from onceonly_jobs.local.unwinding import NUMBERS, unwound_by_signals


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """The handlers of whoever runs the tests, kept; nohup has SIGHUP ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def tell(number: int) -> None:
    """Send this process a signal that should not be its end."""
    assert signal.getsignal(number) != signal.SIG_DFL
    signal.raise_signal(number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_leaves_the_block_and_is_then_what_it_was(number: int) -> None:
    with pytest.raises(SystemExit) as ended, unwound_by_signals():
        tell(number)
    assert ended.value.code == 128 + number
    assert {signal.getsignal(each) for each in NUMBERS} == {signal.SIG_DFL}


def test_the_same_signal_again_ends_at_once_and_another_one_disturbs_nothing() -> None:
    with unwound_by_signals():
        with pytest.raises(SystemExit):
            tell(signal.SIGTERM)
        tell(signal.SIGHUP)
        assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_DFL}


def test_what_is_ignored_or_handled_stays_so() -> None:
    told = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with unwound_by_signals():
        tell(signal.SIGHUP)
        tell(signal.SIGTERM)
    assert told == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class Told:
    """A system whose command is told to end as soon as it looks at it."""

    ended = 0

    def __init__(self, **_: Any) -> None:
        type(self).ended = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        type(self).ended += 1

    def __getattr__(self, _name: str) -> Any:
        tell(signal.SIGTERM)


@pytest.mark.parametrize("words", [["demo"], ["examples", "run", "quickstart"], ["torture"]])
def test_a_command_that_is_told_to_end_ends_its_system(
    words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tortured(*_: Any, **__: Any) -> None:
        with Told() as system:
            system.look()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torture, "torture", tortured)
    for module in (demo, examples):
        monkeypatch.setattr(module, "LocalSystem", Told)
    done = CliRunner().invoke(build(list(words)), words)
    assert (done.exit_code, Told.ended) == (128 + signal.SIGTERM, 1), done.output
