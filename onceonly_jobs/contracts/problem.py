"""The body of every error."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Problem(BaseModel):
    """`detail` is a text, an object with a machine-readable `error` and a readable `message`, or for 422 the
    list of what is wrong with the request."""

    detail: str | dict[str, Any] | list[dict[str, Any]]


DESCRIPTIONS = {
    400: "Understood, but not possible here; `error` says why.",
    401: "No Bearer token, or an unknown API key.",
    402: "The month's quota of a plan that stops hard is used up.",
    403: "The API key is disabled.",
    404: "Nothing under this key.",
    409: "The lease is lost or finished, or the key belongs to another request.",
    413: "The body is too large.",
    422: "The request is malformed; `detail` lists what is wrong.",
    429: "Too many requests; `Retry-After` says for how many seconds.",
    503: "A server behind this one does not answer; `Retry-After` says when to try again.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented error answers of a route."""
    return {status: {"model": Problem, "description": DESCRIPTIONS[status]} for status in statuses}
