"""What can be a tool, and what can't."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from support.claims import make_claim, make_context

from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.worker.jobs import Registry
from onceonly_jobs.worker.outcomes import Fail
from onceonly_jobs.worker.tool_result import stored_form


def pay(amount: float) -> bool:
    """Pays."""
    return amount > 0


def test_a_decorated_function_stays_what_it_was() -> None:
    registry = Registry()
    assert registry.tool(pay) is pay
    assert registry.tool("look", effect="read", queue="q", timeout_ms=1500, max_attempts=2)(pay) is pay
    assert [job.spec("default") for job in registry] == [
        JobSpec(
            name="onceonly.tool.pay",
            queue="default",
            max_attempts=5,
            time_limit_s=15,
            description="Pays.",
            effect="irreversible",
        ),
        JobSpec(
            name="onceonly.tool.look",
            queue="q",
            max_attempts=2,
            time_limit_s=2,
            description="Pays.",
            effect="read",
        ),
    ]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a b", {}, "letters, digits"),
        ("", {}, "letters, digits"),
        ("x" * 129, {}, "letters, digits"),
        ("a", {"effect": "harmless"}, "effect must be one of read"),
        ("a", {"effect": "reconcilable"}, "confirm belongs"),
        ("a", {"confirm": lambda key, args: None}, "confirm belongs"),
        ("a", {"timeout_ms": 0}, "time_limit_s must be above 0"),
        ("a", {"max_attempts": 0}, "max_attempts must be above 0"),
    ],
)
def test_options_must_make_sense(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Registry().tool(name, **options)(pay)


def test_arguments_come_by_name() -> None:
    def positional(amount: float, /) -> None: ...

    def starred(*amounts: float) -> None: ...

    for function in (positional, starred):
        with pytest.raises(ConfigError, match="args are given by name"):
            Registry().tool(function)


def test_what_can_not_be_called_or_checked_is_no_tool() -> None:
    def generator() -> Iterator[int]:
        yield 1

    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821

    def unchecked(a: threading.Lock) -> None: ...  # type: ignore[valid-type]

    for function, says in (
        (generator, "does nothing"),
        (unknown, "can't be read"),
        (unchecked, "can't be checked"),
    ):
        with pytest.raises(ConfigError, match=says):
            Registry().tool(function)


def call(function: Callable[..., Any], effect: str, **args: Any) -> Any:
    registry = Registry()
    registry.tool("t", effect=effect)(function)
    metadata = {"agent_id": "a", "tool": "t", "args": args, "run_id": None}
    return registry["onceonly.tool.t"].handler(make_context(make_claim(metadata=metadata, effect=effect)))


def broken(value: int) -> int:
    raise KeyError("a bug in a validator")


def test_a_check_that_breaks_has_called_nothing() -> None:
    def pay_checked(amount: Annotated[int, AfterValidator(broken)]) -> int:
        return amount

    with pytest.raises(Fail) as raised:
        call(pay_checked, "irreversible", amount=1)
    assert (raised.value.never_made, raised.value.repeatable) == (True, True)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("returned", "kept"),
    [
        ({"on": date(2026, 1, 31)}, {"on": "2026-01-31"}),
        ({"a": "x" * 2000}, None),
        (Unshowable(), None),
        ({"a": Unshowable()}, None),
    ],
)
def test_what_was_returned_is_kept_as_far_as_it_can_be(returned: Any, kept: Any) -> None:
    form = stored_form(returned, 1000).kept
    assert form == kept if kept else form["truncated"] is True


def test_two_functions_of_one_name_are_a_mistake() -> None:
    registry = Registry()
    registry.tool("a")(pay)
    registry.tool("a")(pay)
    with pytest.raises(ConfigError, match=r"two jobs are named 'onceonly\.tool\.a'"):
        registry.tool("a")(lambda amount: None)
