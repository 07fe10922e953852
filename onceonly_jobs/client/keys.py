"""Keys made from a function's arguments: equal arguments give equal keys, in every process and every release.

For positional arguments of plain JSON the key is the one that the published SDK makes, so that processes of both
can work side by side. The form is fixed, and tested against written-down keys; another one would be another
`key_version`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel


def derived_key(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    key_version: str,
    key_id: str | None,
) -> str:
    """64 hex digits that stand for this call of this function.

    An argument given by name counts as given by position, and one that equals its default as not given: how a call
    is written makes no difference, and a new parameter with a default changes no key.
    Raises TypeError for an argument without a stable form.
    """
    name = key_id or f"{function.__module__}.{function.__qualname__}"
    positional, named = normal_form(function, args, kwargs)
    payload = {
        "v": str(key_version),
        "fn": name,
        "args": [_rendered(value, name) for value in positional],
        "kwargs": {key: _rendered(value, name) for key, value in named.items()},
    }
    return hashlib.sha256(_dumped(payload).encode()).hexdigest()


def _rendered(value: Any, name: str) -> str:
    try:
        return _dumped(stable(value))
    except TypeError as error:
        raise TypeError(f"{name}: {error}; pass key_func=, which makes the key from the arguments") from None


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def normal_form(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call in one way of writing it. Raises TypeError where they do not fit."""
    signature = _signature(function)
    bound = signature.bind(*args, **kwargs)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    needed = 0
    for parameter in signature.parameters.values():
        given = bound.arguments.get(parameter.name, parameter.default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = bound.arguments.get(parameter.name, ())
            positional += rest
            needed = len(positional) if rest else needed
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= bound.arguments.get(parameter.name, {})
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if not _same(given, parameter.default):
                named[parameter.name] = given
        else:
            positional.append(given)
            if not _same(given, parameter.default):
                needed = len(positional)
    return positional[:needed], named


def _same(given: Any, default: Any) -> bool:
    if given is default:
        return True
    try:
        return type(given) is type(default) and bool(given == default)
    except Exception:
        return False


def stable(value: Any, depth: int = 0) -> Any:
    """A value as plain JSON that is the same wherever and whenever it is made.

    Plain JSON stays as it is. What JSON has no word for becomes an object with one key that names its kind.
    Raises TypeError for anything else: its repr may hold an address, or change with the library that made it.
    """
    if depth > 100:
        raise TypeError("an argument is nested too deeply, or holds itself")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no stable form")
        return float(value)
    if isinstance(value, list | tuple):
        return [stable(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, BaseModel):
        shown = {name: getattr(value, name) for name in type(value).model_fields}
        return _mapping({**shown, **(value.model_extra or {})}, depth)
    if is_dataclass(value) and not isinstance(value, type):
        return _mapping({item.name: getattr(value, item.name) for item in fields(value)}, depth)
    return _tagged(value, depth)


def _mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = key if type(key) is str else _key_name(key)
        if name in plain:
            raise TypeError(f"two keys of a mapping are both {name!r} in JSON")
        plain[name] = stable(item, depth + 1)
    return plain


def _key_name(key: Any) -> str:
    """As json.dumps writes it."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        return _dumped(stable(key))
    if isinstance(key, Enum | UUID | date | Decimal):
        return _dumped(stable(key))
    raise TypeError(f"a mapping's key of type {type(key).__name__} has no stable form")


def _tagged(value: Any, depth: int) -> dict[str, Any]:
    kind: str
    shown: Any
    match value:
        case Enum():
            kind, shown = "enum", stable(value.value, depth + 1)
        case datetime():
            kind, shown = "datetime", _moment(value)
        case date() | time():
            kind, shown = type(value).__name__, value.isoformat()
        case timedelta():
            kind, shown = "timedelta", [value.days, value.seconds, value.microseconds]
        case Decimal():
            kind, shown = "decimal", _decimal(value)
        case UUID():
            kind, shown = "uuid", str(value)
        case bytes() | bytearray() | memoryview():
            kind, shown = "bytes", bytes(value).hex()
        case PurePath():
            kind, shown = "path", value.as_posix()
        case Set():
            kind, shown = "set", sorted((stable(item, depth + 1) for item in value), key=_dumped)
        case _:
            raise TypeError(f"an argument of type {type(value).__qualname__} has no stable form")
    return {f"${kind}": shown}


def _moment(value: datetime) -> str:
    """One text for one moment, whatever its time zone; without a zone, as it is."""
    return value.isoformat() if value.utcoffset() is None else value.astimezone(UTC).isoformat()


def _decimal(value: Decimal) -> str:
    """One text for equal numbers: 1.10 is 1.1. Raises TypeError for NaN and infinities."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise TypeError(f"{value} has no stable form")
    number = "".join(map(str, digits)).lstrip("0")
    stripped = number.rstrip("0")
    if not stripped:
        return "0"
    return f"{'-' if sign else ''}{stripped}e{exponent + len(number) - len(stripped)}"
