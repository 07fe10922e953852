"""A question for the database, and an operation that asks several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import sqlalchemy as sa

T = TypeVar("T")

Operation: TypeAlias = Generator["Statement[Any]", Any, T]
"""Yields statements, receives their answers, returns a value. Does no I/O itself."""


@dataclass(frozen=True, slots=True)
class Statement(Generic[T]):
    """One SQL statement by name, its parameters, and how to read its rows."""

    name: str
    query: sa.Executable
    read: Callable[[sa.CursorResult[Any]], T]
    params: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Operation[T]:
        """Gives `yield from` its exact type."""
        answer: T = yield self
        return answer


F = TypeVar("F", bound=Callable[..., Operation[Any]])


def autocommit(operation: F) -> F:
    """Mark an operation each of whose statements is whole in itself: no BEGIN and COMMIT round trips."""
    operation.__dict__["autocommit"] = True
    return operation


def read_only(operation: F) -> F:
    """Mark an autocommit operation that changes nothing: on a connection that proves dead it is asked again."""
    operation.__dict__["read_only"] = True
    return autocommit(operation)


def is_read_only(operation: Callable[..., Any]) -> bool:
    return bool(getattr(operation, "read_only", False))


def is_autocommit(operation: Callable[..., Any]) -> bool:
    return bool(getattr(operation, "autocommit", False))


def nothing(_: sa.CursorResult[Any]) -> None:
    """Reads no rows."""


def count(result: sa.CursorResult[Any]) -> int:
    """How many rows were changed."""
    return int(result.rowcount)


def one_or_none(row: Callable[[sa.RowMapping], T]) -> Callable[[sa.CursorResult[Any]], T | None]:
    """The only row as a value, or None when there is none."""

    def read(result: sa.CursorResult[Any]) -> T | None:
        mapping = result.mappings().one_or_none()
        return None if mapping is None else row(mapping)

    return read


def many(row: Callable[[sa.RowMapping], T]) -> Callable[[sa.CursorResult[Any]], list[T]]:
    """All rows as values."""

    def read(result: sa.CursorResult[Any]) -> list[T]:
        return [row(mapping) for mapping in result.mappings()]

    return read
