"""What is made of Celery's word on a dead process."""

from __future__ import annotations

import pytest

from onceonly_jobs.worker.deaths import cause, signal_in


@pytest.mark.parametrize(
    ("said", "known", "signal"),
    [
        ("Worker exited prematurely: signal 9 (SIGKILL) Job: 3.", "signal 9 (SIGKILL)", 9),
        ("Worker exited prematurely: signal 11 (SIGSEGV) Job: 12.", "signal 11 (SIGSEGV)", 11),
        ("Worker exited prematurely: exitcode 70 Job: 0.", "exitcode 70", None),
        ("Worker exited prematurely: exitcode 1.", "exitcode 1", None),
        ("something else", "something else", None),
    ],
)
def test_the_cause_of_a_death_is_kept_without_celerys_own_numbers(
    said: str, known: str, signal: int | None
) -> None:
    assert cause(said) == f"the worker's process died: {known}"
    assert signal_in(said) == signal
