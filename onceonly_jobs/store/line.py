"""A connection of its own for statements that follow each other closely, past SQLAlchemy's pool and its layers."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.exc import DBAPIError

# With parameters by their numbers: psycopg reads a statement with names anew each time, if it is a long one.
_DIALECT = dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Rows:
    """What a statement gave, as its `read` takes it."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def mappings(self) -> Sequence[Mapping[str, Any]]:
        return self._rows

    def scalar_one(self) -> Any:
        [row] = self._rows
        return next(iter(row.values()))


class Line:
    """Opens at its first use, and again after it was lost. One caller at a time."""

    def __init__(
        self, url: sa.URL, options: Mapping[str, Any], opened: Callable[[psycopg.AsyncConnection[Any]], Any]
    ):
        """options: of psycopg's connect. opened: is awaited with each new connection."""
        self._conninfo = make_conninfo(url.set(drivername="postgresql").render_as_string(hide_password=False))
        self._options = options
        self._opened = opened
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None

    async def connection(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        """The open connection. Raises DBAPIError."""
        if self._connection is not None and _lost(self._connection):
            await self.close()
        if self._connection is None:
            with _Translated():
                connection = await psycopg.AsyncConnection.connect(
                    self._conninfo,
                    autocommit=True,
                    row_factory=dict_row,
                    cursor_factory=psycopg.AsyncRawCursor,
                    **self._options,
                )
                await self._opened(connection)
            self._connection = connection
        return self._connection

    async def execute(self, query: sa.Executable, params: Mapping[str, Any]) -> Rows:
        """The rows of one statement. Raises DBAPIError."""
        connection = await self.connection()
        with _Translated():
            text, names = _compiled(query)
            cursor = await connection.execute(text, [params[name] for name in names])
            returned = cursor.pgresult is not None and cursor.pgresult.nfields > 0
            return Rows(await cursor.fetchall() if returned else ())

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


@lru_cache(maxsize=64)
def _compiled(query: sa.Executable) -> tuple[str, tuple[str, ...]]:
    """The statement, and the names of its parameters in their order."""
    compiled = query.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
    return str(compiled), tuple(compiled.positiontup or ())


def _lost(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether it is closed, or an idle one has something to say: that it ends."""
    if connection.closed:
        return True
    readable, _, _ = select.select([connection.fileno()], [], [], 0)
    return bool(readable)


class _Translated:
    """psycopg's errors, as SQLAlchemy's drivers raise them."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, psycopg.Error):
            lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
            raise DBAPIError.instance(
                None,
                None,
                error,
                psycopg.Error,
                hide_parameters=True,
                connection_invalidated=lost,
                dialect=_DIALECT,
            ) from error
