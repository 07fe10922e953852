"""Which schema this code knows. Apart from migrations.py, whose tools every process would have to load."""

from __future__ import annotations

from functools import cache
from pathlib import Path


def scripts_path() -> Path:
    """The migrations folder: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


@cache
def head() -> str:
    """The newest revision that this code knows: the files are numbered."""
    return max(path.name[:4] for path in (scripts_path() / "versions").glob("[0-9]*.py"))


def serves(revision: str | None) -> bool:
    """Whether this code can work on a schema at that revision: its own, or one that a newer version has expanded."""
    return revision is not None and revision.isdecimal() and int(revision) >= int(head())
