"""Rows below headings, for a terminal or for a pipe."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 250

console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def show_table(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Print rows below their headings; times to the second, nothing as `-`."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(shown(cell) for cell in row))
    console.print(table)


def shown(cell: object) -> Text:
    """Text for a terminal: what callers have sent can neither colour nor command it."""
    if isinstance(cell, datetime):
        return Text(f"{cell:%Y-%m-%d %H:%M:%S}")
    text = "-" if cell is None else str(cell)
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text))
