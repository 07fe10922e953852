"""What is made of Celery's word on a dead process."""

from __future__ import annotations

import pytest
from billiard.exceptions import Terminated, WorkerLostError

from onceonly_jobs.worker.deaths import cause, signal_in, word_of_death


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


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (WorkerLostError("Worker exited prematurely: exitcode 1."), "Worker exited prematurely: exitcode 1."),
        (Terminated(9), "signal 9 (SIGKILL)"),
        (Terminated(-70), "exitcode 70"),
        (Terminated("the run was cancelled"), None),
        (Terminated(), None),
        (ValueError("9"), None),
    ],
)
def test_a_task_that_was_terminated_may_have_lost_its_process(error: Exception, word: str | None) -> None:
    assert word_of_death(error) == word
