"""Registering jobs, and what a handler is given."""

from __future__ import annotations

from typing import Any

import pytest
from support.claims import Told, make_claim, make_context

from onceonly_jobs.domain.fingerprint import MAX_DEPTH, storable
from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.worker.context import JobContext
from onceonly_jobs.worker.interrupt import Interrupt, Interrupted, Reason
from onceonly_jobs.worker.jobs import Registry
from onceonly_jobs.worker.outcomes import Unusable, as_result, described


def handler(ctx: JobContext) -> str:
    """Says its key.

    And nothing else.
    """
    return ctx.key


def test_a_decorated_function_stays_what_it_was() -> None:
    registry = Registry()
    assert registry.job(handler) is handler
    assert registry.job("other", queue="q", match="a:*", max_attempts=1, time_limit_s=9)(handler) is handler
    assert [job.spec("default") for job in registry] == [
        JobSpec(name="handler", queue="default", description="Says its key."),
        JobSpec(
            name="other",
            queue="q",
            match="a:*",
            max_attempts=1,
            time_limit_s=9,
            description="Says its key.",
        ),
    ]


def test_two_functions_of_one_name_are_a_mistake() -> None:
    registry = Registry()
    registry.job("a")(handler)
    registry.job("a")(handler)  # the same one again: a module that was imported twice
    with pytest.raises(ConfigError, match="two jobs are named 'a'"):
        registry.job("a")(lambda ctx: None)


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"max_crashes": 0}, {"time_limit_s": 0}, {"retry_base_s": -1}]
)
def test_options_must_make_sense(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        Registry().job("a", **options)(handler)  # type: ignore[call-overload]


@pytest.mark.parametrize("field", ["retry_on", "give_up_on"])
@pytest.mark.parametrize("wrong", ["ValueError", ValueError("x"), int, (ValueError, 7), ()])
def test_only_exception_types_say_what_is_worth_another_attempt(field: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be exception types"):
        Registry().job("a", **{field: wrong})(handler)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "retried"),
    [
        ({}, (True, True, True)),
        ({"retry_on": OSError}, (True, True, False)),
        ({"give_up_on": ConnectionError}, (True, False, True)),
        ({"retry_on": (OSError,), "give_up_on": [ConnectionError]}, (True, False, False)),
    ],
)
def test_what_is_worth_another_attempt(options: dict[str, Any], retried: tuple[bool, ...]) -> None:
    """give_up_on wins; subclasses count, as with except."""
    registry = Registry()
    registry.job("a", **options)(handler)
    errors = (TimeoutError(), ConnectionResetError(), KeyError("x"))
    assert tuple(registry["a"].retries(error) for error in errors) == retried


def test_a_handler_knows_whether_it_is_tried_again() -> None:
    first, last = make_context(make_claim(failures=0, crashes=2)), make_context(make_claim(failures=2))
    assert (first.failures, first.crashes, first.attempts_left, first.last_attempt) == (0, 2, 2, False)
    assert (last.failures, last.attempts_left, last.last_attempt) == (2, 0, True)


def test_own_jobs_take_precedence_over_built_in_ones() -> None:
    own, builtin = Registry(), Registry()
    own.job("echo", queue="own")(handler)
    builtin.job("echo")(handler)
    builtin.job("chat")(handler)
    assert {job.name: job.queue for job in own.over(builtin)} == {"echo": "own", "chat": None}


def test_keys_for_calls_onward_are_the_same_in_every_attempt() -> None:
    first = make_context(make_claim())
    second = make_context(make_claim(attempt=2, fencing_token=2, lease_id="wl_2"))
    assert first.idempotency_key("pay") == second.idempotency_key("pay")


@pytest.mark.parametrize("changed", [{"tenant_id": "u"}, {"key": "l"}, {"decision_id": 12}])
def test_keys_for_calls_onward_are_another_runs_never(changed: dict[str, object]) -> None:
    assert make_context().idempotency_key("pay") != make_context(make_claim(**changed)).idempotency_key("pay")


def test_check_stops_a_handler_that_should_stop() -> None:
    interrupt = Interrupt()
    context = make_context(interrupt=interrupt)
    context.check()
    assert not context.cancelled
    interrupt.announced = Reason.CANCELLED
    assert (context.cancelled, context.lease_lost) == (True, False)
    with pytest.raises(Interrupted):
        context.check()


def test_what_is_reported_can_be_stored() -> None:
    told = Told()
    context = make_context(told=told)
    context.progress(0.5, "half\x00way")
    context.log("line", n=1)
    assert told.notes == [("progress", "halfway", {"fraction": 0.5}), ("log", "line", {"n": 1})]
    for bad in ({"a": object()}, {"a": "\x00"}, {"a": "x" * 70_000}):
        with pytest.raises(ValueError, match="not for the timeline"):
            context.progress(bad)


def test_payload_is_an_object_whatever_was_sent() -> None:
    assert make_context(make_claim(metadata={"payload": {"a": 1}})).payload == {"a": 1}
    assert make_context(make_claim(metadata={"payload": "text"})).payload == {}


def test_a_result_is_measured_as_it_is_stored() -> None:
    result = {"text": "ä" * 10}
    assert as_result(result, limit_bytes=31) == result
    with pytest.raises(Unusable) as raised:
        as_result(result, limit_bytes=30)
    assert raised.value.code == "result_too_large"


def test_a_result_may_hold_what_was_sent_but_not_be_bottomless() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert storable(deep) is None
    assert as_result({"a": [{"b": deep}]}, limit_bytes=1000) == {"a": [{"b": deep}]}
    with pytest.raises(Unusable, match="nested deeper than 67 levels"):
        as_result({"a": [[{"b": deep}]]}, limit_bytes=1000)


def test_an_error_is_described_even_if_it_can_not_describe_itself() -> None:
    class Mean(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert described(Mean()) == "Mean: (its text can't be shown)"
    assert described(ValueError("a\x00b\ud800")) == "ValueError: ab?"
    assert described(ValueError()) == "ValueError"
    assert len(described(ValueError("x" * 10_000))) == 2000


def test_a_job_may_declare_when_it_runs_by_itself() -> None:
    registry = Registry()
    registry.job("daily", cron="0 6 * * *", tz="Europe/Kyiv", misfire="skip", payload={"a": 1})(handler)
    registry.job("by_hand")(handler)
    schedule = registry["daily"].schedule
    assert schedule is not None
    assert (schedule.name, schedule.task, schedule.cron, schedule.tz) == ("daily",) * 2 + (
        "0 6 * * *",
        "Europe/Kyiv",
    )
    assert (schedule.misfire, schedule.payload) == ("skip", {"a": 1})
    assert registry["by_hand"].schedule is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cron": "61 * * * *"}, "job 'a': cron: .*Bad minute"),
        ({"cron": "@daily", "tz": "Mars"}, "job 'a': tz: unknown time zone 'Mars'"),
        ({"every_s": 0}, "job 'a': every_s: "),
        ({"tz": "Europe/Kyiv"}, "give one of cron, every_s and at"),
        ({"cron": "@daily", "every_s": 5}, "give only one of"),
        ({"cron": "@daily", "overlap": "never"}, "job 'a': overlap: "),
    ],
)
def test_a_wrong_schedule_stops_the_worker_from_starting(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Registry().job("a", **options)(handler)  # type: ignore[call-overload]
