"""Whoever imports the published SDK finds the same names here, and may call them the same way."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import onceonly
import pytest

OURS = "onceonly_jobs"
MADE_BY_THE_CLIENT = {"AiClient", "GovernanceClient"}
"""Nobody but the client makes these: it hands them its connections."""


def public_modules() -> Iterator[str]:
    yield "onceonly"
    for module in pkgutil.walk_packages(onceonly.__path__, "onceonly."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            yield module.name


def public_names(module: Any) -> Iterator[str]:
    """What it exports, and what it defines itself, but for its type variables."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__ and not isinstance(value, TypeVar)
        if name in getattr(module, "__all__", ()) or (own and not name.startswith("_")):
            yield name


NAMES = [
    (module, name) for module in public_modules() for name in public_names(importlib.import_module(module))
]


def counterpart(module: str) -> Any:
    return importlib.import_module(OURS + module.removeprefix("onceonly"))


def test_there_is_something_to_compare() -> None:
    assert ("onceonly", "OnceOnly") in NAMES
    assert ("onceonly.integrations.langchain", "make_idempotent_tool") in NAMES
    assert len(NAMES) > 30
    methods = {f"{owner}.{name}" for owner, name, _, _ in CALLABLES}
    assert {"OnceOnly.check_lock_async", "AiClient.run_fn", "GovernanceClient.agent_metrics"} <= methods


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda part: part)
def test_every_public_name_is_here(module: str, name: str) -> None:
    assert hasattr(counterpart(module), name)


def test_modules_are_found_as_attributes() -> None:
    """After `import onceonly`, `onceonly.exceptions` is there; in a process of its own, where nobody imported it."""
    modules = [name.removeprefix("onceonly.") for name in public_modules() if name.count(".") == 1]
    found = [f"{OURS}.{name}" for name in modules if name != "integrations"]
    code = f"import {OURS}\nassert [m.__name__ for m in ({', '.join(found)})] == {found}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def callables() -> Iterator[tuple[str, str, Any, Any]]:
    """(owner, name, theirs, ours) of every function, constructor, method and property."""
    for module, name in NAMES:
        theirs, ours = getattr(importlib.import_module(module), name), getattr(counterpart(module), name)
        if inspect.isfunction(theirs):
            yield module, name, theirs, ours
        if not inspect.isclass(theirs):
            continue
        if "__init__" in vars(theirs) and name not in MADE_BY_THE_CLIENT:
            yield name, "__init__", theirs, ours
        for method, value in vars(theirs).items():
            if not method.startswith("_") and (callable(value) or isinstance(value, staticmethod)):
                yield name, method, getattr(theirs, method), getattr(ours, method)


CALLABLES = list({(owner, name): (owner, name, a, b) for owner, name, a, b in callables()}.values())


@pytest.mark.parametrize(
    ("owner", "name", "theirs", "ours"), CALLABLES, ids=[f"{owner}.{name}" for owner, name, _, _ in CALLABLES]
)
def test_every_call_of_theirs_is_one_of_ours(owner: str, name: str, theirs: Any, ours: Any) -> None:
    """Every parameter, by name and by place; what is optional there is optional here."""
    accepted = inspect.signature(ours).parameters
    positional = [p.name for p in accepted.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for place, parameter in enumerate(inspect.signature(theirs).parameters.values()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            assert any(p.kind is parameter.kind for p in accepted.values()), parameter
            continue
        assert parameter.name in accepted, parameter
        ours_ = accepted[parameter.name]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert positional[place] == parameter.name
        assert ours_.kind is not ours_.POSITIONAL_ONLY
        if parameter.default is not parameter.empty:
            assert ours_.default is not ours_.empty, parameter
            assert ours_.default in (parameter.default, None, ""), parameter
    needed = {
        p.name for p in accepted.values() if p.default is p.empty and not p.kind.name.startswith("VAR_")
    }
    assert needed <= set(inspect.signature(theirs).parameters)
    assert inspect.iscoroutinefunction(ours) is inspect.iscoroutinefunction(theirs)


@pytest.mark.parametrize(
    "name", ["CheckLockResult", "Policy", "AgentStatus", "AgentLogItem", "AgentMetrics", "AiToolResult"]
)
def test_results_have_the_same_fields_in_the_same_order(name: str) -> None:
    theirs, ours = getattr(onceonly, name), getattr(importlib.import_module(OURS), name)
    assert list(ours.__dataclass_fields__) == list(theirs.__dataclass_fields__)


def test_exceptions_are_caught_by_the_same_handlers() -> None:
    errors = importlib.import_module(f"{OURS}.exceptions")
    for name in onceonly.__all__:
        theirs = getattr(onceonly, name)
        if inspect.isclass(theirs) and issubclass(theirs, Exception):
            for base in (cls for cls in theirs.__mro__ if cls.__module__.startswith("onceonly")):
                assert issubclass(getattr(errors, name), getattr(errors, base.__name__))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (
            ("CheckLockResult", (True, False, "order:12345", 3600, None, "req", 200, {})),
            "CheckLockResult(locked=True, duplicate=False, key='order:12345', ttl=3600, first_seen_at=None)",
        ),
        (
            ("AiToolResult", (False, False, "blocked", "tool_not_allowed", "high")),
            "AiToolResult(ok=False, allowed=False, decision='blocked', policy_reason='tool_not_allowed', "
            "risk_level='high')",
        ),
        (
            (
                "AgentMetrics",
                ("billing-agent", "day", 127, 3, 63.5, [{"tool": "send_email", "count": 32}], {"raw": 1}),
            ),
            "AgentMetrics(agent_id='billing-agent', period='day', total_actions=127, blocked_actions=3, "
            "total_spend_usd=63.5, top_tools=[{'tool': 'send_email', 'count': 32}])",
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_results_show_what_there_is_to_say(value: tuple[str, tuple[Any, ...]], shown: str) -> None:
    assert repr(getattr(importlib.import_module(OURS), value[0])(*value[1])) == shown
