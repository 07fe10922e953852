"""Several questions in one statement: rows that travel as JSON, and answers that find their question by its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa

from onceonly_jobs.domain.fingerprint import compact_json
from onceonly_jobs.store.statement import Statement

T = TypeVar("T")


def to_rows(rows: Iterable[dict[str, Any]]) -> str:
    """The rows, each with its number `n`, for json_to_recordset. Values that are dictionaries stay JSON."""
    numbered = [{"n": number, **row} for number, row in enumerate(rows)]
    try:
        return orjson.dumps(numbered).decode()
    except TypeError:  # quick, but not for integers beyond 64 bits
        return orjson.dumps([{name: _value(row[name]) for name in row} for row in numbered]).decode()


def _value(value: Any) -> Any:
    return orjson.Fragment(compact_json(value)) if isinstance(value, dict) else value


def numbered(count: int, read: Callable[[Any], T]) -> Callable[[sa.CursorResult[Any]], list[T | None]]:
    """Reads rows whose `n` is the number of the question they answer; None for one without an answer."""

    def in_order(result: sa.CursorResult[Any]) -> list[T | None]:
        answers: list[T | None] = [None] * count
        for row in result.mappings():
            answers[row["n"]] = read(row)
        return answers

    return in_order


def only(statement: Statement[list[T | None]]) -> Statement[T | None]:
    """The statement of a single question, with its answer by itself."""
    return replace(statement, read=lambda result: statement.read(result)[0])  # type: ignore[arg-type, return-value]
