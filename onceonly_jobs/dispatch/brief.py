"""An error as one line of a log."""

from __future__ import annotations


def brief(error: BaseException) -> str:
    """Type and message. Of a database error the driver's own: SQLAlchemy's text holds statement and values."""
    cause = getattr(error, "orig", None) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())
