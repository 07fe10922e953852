"""The pure rules: plans, states, retries, what JSON can be kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onceonly_jobs.domain.fingerprint import canonical_json, compact_json, result_hash, storable
from onceonly_jobs.domain.plans import LIMITS, Plan
from onceonly_jobs.domain.retries import retry_delay_s
from onceonly_jobs.domain.runs import JobSpec, Run
from onceonly_jobs.domain.states import Owner, RunState
from onceonly_jobs.errors import UnknownTask
from onceonly_jobs.services.runs import by_name, pick_job

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("plan", "default", "longest"),
    [
        (Plan.FREE, 60, 3_600),
        (Plan.STARTER, 3_600, 86_400),
        (Plan.PRO, 21_600, 604_800),
        (Plan.AGENCY, 86_400, 2_592_000),
    ],
)
def test_ttl_is_clamped_into_the_plan(plan: Plan, default: int, longest: int) -> None:
    limits = LIMITS[plan]
    assert limits.effective_ttl_s(None) == default
    assert limits.effective_ttl_s(1) == 10
    assert limits.effective_ttl_s(longest) == longest
    assert limits.effective_ttl_s(10**30) == longest


@given(attempt=st.integers(1, 10_000), unit=st.floats(0, 1, exclude_max=True), base=st.floats(0.01, 60))
def test_retry_delay_stays_in_its_half_open_window(attempt: int, unit: float, base: float) -> None:
    full = min(300.0, base * 2.0 ** min(attempt - 1, 62))
    assert full / 2 <= retry_delay_s(attempt, unit, base, 300.0) <= full


def test_attempts_count_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        retry_delay_s(0, 0.5)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_ordinary_json_is_storable_and_survives(value: Any) -> None:
    assert storable(value) is None
    assert json.loads(compact_json(value)) == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\x00b", "NUL"),
        ({"a": ["\x00"]}, "NUL"),
        ({"\x00": 1}, "NUL"),
        ("\ud800", "surrogate"),
        (2**63, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        (float("inf"), "finite"),
        (float("nan"), "finite"),
        ({1: 2}, "keys must be strings"),
        (object(), "not JSON"),
    ],
)
def test_what_postgres_or_json_cannot_keep_is_named(value: Any, why: str) -> None:
    found = storable(value)
    assert found is not None
    assert why in found


def test_bottomless_nesting_is_refused_without_recursing_forever() -> None:
    value: Any = 0
    for _ in range(100_000):
        value = [value]
    assert "deeper" in (storable(value) or "")


def test_equal_results_have_equal_hashes_whatever_their_order() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == b'{"a":[1,2],"b":1}'
    assert result_hash({"b": 1, "a": 2}) == result_hash({"a": 2, "b": 1})
    assert result_hash({"a": 1}) != result_hash({"a": 2})


def run_with(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "id": 1,
        "key": "k",
        "run_id": "k",
        "owner": Owner.CALLER,
        "state": RunState.IN_PROGRESS,
        "version": 1,
        "fencing_token": 1,
        "lease_id": "lease_x",
        "lease_ttl_s": 60,
        "lease_until_at": NOW + timedelta(seconds=60),
        "deadline_at": None,
        "first_seen_at": NOW,
        "done_at": None,
        "result": None,
        "result_hash": None,
        "error_code": None,
        "error_message": None,
        "read_at": NOW,
    }
    return Run(**fields | changes)


def test_pollers_come_often_at_first_then_seldom() -> None:
    assert run_with().retry_after_s() == 1
    assert run_with(read_at=NOW + timedelta(seconds=9.9)).retry_after_s() == 1
    assert run_with(read_at=NOW + timedelta(seconds=10)).retry_after_s() == 5
    assert run_with(done_at=NOW).retry_after_s() is None


def test_an_expired_lease_invites_at_once() -> None:
    late = run_with(read_at=NOW + timedelta(seconds=61))
    assert late.ttl_left_s() == 0
    assert late.retry_after_s() == 1


def test_a_queued_job_has_its_whole_time_limit_left() -> None:
    queued = run_with(owner=Owner.SERVER, state=RunState.QUEUED, lease_until_at=None)
    assert queued.ttl_left_s() == 60
    running = run_with(owner=Owner.SERVER, deadline_at=NOW + timedelta(seconds=7))
    assert running.ttl_left_s() == 7


JOBS = [
    JobSpec(name="echo", queue="q"),
    JobSpec(name="daily", queue="q", match="report:daily:*"),
    JobSpec(name="any_report", queue="q", match="report:*"),
]


def test_a_named_task_wins_over_every_pattern() -> None:
    assert pick_job(by_name(JOBS), "echo", "report:daily:1", "echo", "q").name == "echo"


def test_the_most_specific_pattern_wins() -> None:
    assert pick_job(by_name(JOBS), None, "report:daily:1", "echo", "q").name == "daily"
    assert pick_job(by_name(JOBS), None, "report:weekly:1", "echo", "q").name == "any_report"


def test_a_run_without_task_or_pattern_gets_the_default_even_before_any_worker_registered() -> None:
    assert pick_job(by_name(JOBS), None, "other", "echo", "q") == JOBS[0]
    assert pick_job({}, None, "other", "echo", "q0") == JobSpec(name="echo", queue="q0")


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(UnknownTask) as refused:
        pick_job(by_name(JOBS), "nope", "k", "echo", "q")
    assert refused.value.detail["task"] == "nope"  # type: ignore[index]
