"""Errors become bodies here, and only here: `{"detail": ...}` with the status the contract gives them."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from onceonly_jobs.errors import Refusal, Unavailable
from onceonly_jobs.store.database import too_slow, unreachable

logger = logging.getLogger(__name__)

SHOWN_INPUT = 200


class Problem(Response):
    """A JSON error body. Escapes all but ASCII, so that whatever was sent can be shown back."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps({"detail": content}, separators=(",", ":")).encode()


def invalid(loc: tuple[str | int, ...], message: str, type_: str = "value_error") -> RequestValidationError:
    """A 422 in the shape of the validator's own."""
    return RequestValidationError([{"type": type_, "loc": loc, "msg": message, "input": {}}])


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101
    return Problem(error.detail, status_code=error.status, headers=error.headers)


def _unprocessable(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    detail = [
        {"type": e["type"], "loc": list(e["loc"]), "msg": e["msg"], "input": _shown(e.get("input"))}
        for e in error.errors()
    ]
    return Problem(detail, status_code=422)


def _shown(value: Any) -> Any:
    """What was wrong, cut short."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return f"<{type(value).__name__}>"
    return value if len(text) <= SHOWN_INPUT else text[:SHOWN_INPUT] + "..."


def _database(request: Request, error: Exception) -> Response:
    if unreachable(error) or too_slow(error):
        logger.warning("%s: the database does not answer: %s", request.url.path, error.__cause__ or error)
        return _refused(request, Unavailable("the database"))
    return _unexpected(request, error)


def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s: unexpected error", request.url.path, exc_info=error)
    # The outermost handler, outside of the middleware that gives all other answers their headers.
    headers = {"X-Request-Id": getattr(request.state, "request_id", "")}
    body = {"error": "internal_error", "message": "unexpected error; see the log"}
    return Problem(body, status_code=500, headers=headers)


def _gone(_: Request, error: Exception) -> Response:
    """For the log of the server in front: the client went away in the middle of its own request."""
    return Problem("the request was not sent to its end", status_code=400)


def install(app: FastAPI) -> None:
    """Make every error of this app answer in the contract's shape."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _unprocessable)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(Exception, _unexpected)
