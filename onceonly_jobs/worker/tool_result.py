"""What a tool's answer is worth: a result that can be stored, a message for people, a cost."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from onceonly_jobs.domain.fingerprint import compact_json, storable
from onceonly_jobs.domain.governance import MAX_USD
from onceonly_jobs.worker.outcomes import EXCERPT, described, printable
from onceonly_jobs.worker.tool_wire import Answer

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 1_048_576
COST_HEADER = "x-onceonly-cost-usd"
COST_FIELD = "cost_usd"

_NOT_JSON = object()


def result_of(answer: Answer) -> dict[str, Any]:
    """A successful answer as a result that can be stored, of at most 1 MiB as compact JSON.

    A JSON object is itself, other JSON and text are under `data`, nothing is `{}`. What is larger is cut to
    an excerpt and marked `truncated`.
    """
    if not answer.whole:
        return _excerpt(answer)
    if not answer.body.strip():
        return {}
    value = _kept(_parsed(answer.body))
    if value is _NOT_JSON:
        value = printable(_text(answer.body), MAX_ANSWER_BYTES)
    result = value if isinstance(value, dict) else {"data": value}
    return result if len(compact_json(result)) <= MAX_ANSWER_BYTES else _excerpt(answer)


@dataclass(frozen=True, slots=True)
class Returned:
    """What a function returned, as JSON: all of it, and as much of it as is kept."""

    whole: dict[str, Any]
    kept: dict[str, Any]


def stored_form(value: Any, limit_bytes: int) -> Returned:
    """What a function returned as a result that can be stored; it raises nothing, for the work has been done.

    A JSON object is itself, nothing is `{}`, anything else is under `data`. Models, dataclasses, dates and the like are
    what pydantic makes of them. What can't be stored or is larger is cut to an excerpt and marked `truncated`.
    """
    try:
        plain = to_jsonable_python(value)
        document = {} if plain is None else plain if isinstance(plain, dict) else {"data": plain}
        kept = _kept(document)
        if isinstance(kept, dict):
            size = len(compact_json(kept))
            return Returned(kept, kept if size <= limit_bytes else _cut(compact_json(kept), limit_bytes))
    except Exception as error:  # a value's own code may raise anything
        logger.warning("a function's result can't be stored: %s", described(error))
    return Returned({}, _cut(_shown(value), limit_bytes))


def _shown(value: Any) -> bytes:
    try:
        return repr(value).encode("utf-8", "replace")
    except Exception as error:
        return described(error).encode()


def _cut(text: bytes, limit_bytes: int) -> dict[str, Any]:
    """An excerpt within the limit: a character takes up to 6 bytes as JSON."""
    length = min(EXCERPT, limit_bytes // 8)
    return {"data": printable(_text(text), length), "truncated": True}


def error_of(status: int | None, message: str) -> dict[str, Any]:
    """A failed call as a result."""
    return {"error": "tool_error", "status": status, "message": printable(message, EXCERPT)}


def complaint_of(answer: Answer) -> str:
    """What an unsuccessful answer says."""
    said = _text(answer.body[:EXCERPT]).strip()
    return f"the tool answered {answer.status}" + (f": {said}" if said else "")


def cost_of(answer: Answer) -> float | None:
    """What the tool says the call cost: its header, or else `cost_usd` of a JSON object.

    None when it says nothing, or anything but a number from 0 to 1e9.
    """
    told: Any = answer.headers.get(COST_HEADER)
    if told is None and answer.whole:
        return cost_in(_parsed(answer.body))
    return _usd(told)


def cost_in(value: Any) -> float | None:
    """The field `cost_usd` of a JSON object, where it is such a number."""
    told = value.get(COST_FIELD) if isinstance(value, dict) else None
    return _usd(told) if isinstance(told, int | float) and not isinstance(told, bool) else None


def _usd(told: Any) -> float | None:
    try:
        cost = float(told)
    except (TypeError, ValueError, OverflowError):
        return None
    return cost if 0 <= cost <= MAX_USD else None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _kept(value: Any) -> Any:
    """The value as it can be stored, its text cleaned where that is all that is wrong with it."""
    if value is _NOT_JSON or storable(value) is None:
        return value
    try:
        value = _cleaned(value)
    except RecursionError:
        return _NOT_JSON
    return value if storable(value) is None else _NOT_JSON


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value, len(value))
    if isinstance(value, dict):
        return {printable(key, len(key)): _cleaned(inner) for key, inner in value.items()}
    return [_cleaned(inner) for inner in value] if isinstance(value, list) else value


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _excerpt(answer: Answer) -> dict[str, Any]:
    return {"data": printable(_text(answer.body), EXCERPT), "truncated": True}
