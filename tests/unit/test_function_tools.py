"""What can be a tool, and what can't."""

from __future__ import annotations

from typing import Any

import pytest

from onceonly_jobs.domain.runs import JobSpec
from onceonly_jobs.errors import ConfigError
from onceonly_jobs.worker.jobs import Registry


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
        with pytest.raises(ConfigError, match="arguments come by name"):
            Registry().tool(function)


def test_two_functions_of_one_name_are_a_mistake() -> None:
    registry = Registry()
    registry.tool("a")(pay)
    registry.tool("a")(pay)
    with pytest.raises(ConfigError, match=r"two jobs are named 'onceonly\.tool\.a'"):
        registry.tool("a")(lambda amount: None)
