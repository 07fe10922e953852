"""A function's value as a stored result, and back as the type that the function says it returns."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from onceonly_jobs.client.exceptions import RunFailed
from onceonly_jobs.client.models import AiResult
from onceonly_jobs.client.payloads import Json, is_object, jsonable

WRAPPER = {"value", "wrapped"}
"""The keys of a result that holds a value which is no JSON object by itself."""


def encoded(value: Any) -> Json | None:
    """The JSON object to store. Raises TypeError for a value without a JSON form."""
    if value is None:
        return None
    plain = jsonable(value)
    if is_object(value) and isinstance(plain, dict) and set(plain) != WRAPPER:
        return plain
    return {"value": plain, "wrapped": True}


def decoded(function: Callable[..., Any], outcome: AiResult) -> Any:
    """The value of a stored outcome, as the type in the function's annotation; without one, as plain JSON.

    Raises RunFailed where there is none, and pydantic's ValidationError for one of another type.
    """
    if outcome.status != "completed":
        raise _failed(outcome)
    plain: Any = outcome.result
    if isinstance(plain, dict) and set(plain) == WRAPPER:
        plain = plain["value"]
    adapter = _adapter(function)
    return plain if adapter is None else adapter.validate_python(plain)


def _failed(outcome: AiResult) -> RunFailed:
    why = outcome.error_code or outcome.status
    error = RunFailed(
        f"{outcome.key!r} has no value: {why}",
        detail={"error": "run_failed", "error_code": why, "key": outcome.key, "status": outcome.status},
    )
    if outcome.error_code == "timeout":
        error.add_note("Somebody else is still at work on it: call again, or with a longer timeout.")
    else:
        error.add_note("A failure is kept for the retention time; to try again, use another key.")
    return error


@functools.cache
def _adapter(function: Callable[..., Any]) -> TypeAdapter[Any] | None:
    try:
        annotation = typing.get_type_hints(function).get("return", inspect.Parameter.empty)
    except NameError:  # a type that only exists where the function was written
        return None
    return None if annotation is inspect.Parameter.empty else TypeAdapter(annotation)
