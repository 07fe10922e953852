"""How a handler's attempt may end: a result that can be stored, a retry, or a failure."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel

from onceonly_jobs.domain.fingerprint import RESULT_DEPTH, compact_json, storable

MAX_MESSAGE = 2000
EXCERPT = 4096
LONGEST_DELAY_S = 30 * 86_400


class Fail(Exception):
    """Raised by a handler to give up at once: the run fails with this code, whatever attempts are left.

    result: what there is to show all the same. repeatable: a repeat under this key is a run like the first.
    never_made: provably nothing was sent, so what it was to cost is given back.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        result: dict[str, Any] | None = None,
        repeatable: bool = False,
        never_made: bool = False,
    ) -> None:
        super().__init__(code, message)
        self.code = printable(code, 256) or "failed"
        self.message = printable(message)
        self.result = result
        self.repeatable = repeatable
        self.never_made = never_made


class Retry(Exception):
    """Raised by a handler to be tried again, after delay_s seconds or the job's own backoff.

    It counts as an attempt; after the last one the run fails. Raises ValueError for a delay above 30 days.
    """

    def __init__(self, delay_s: float | None = None, message: str = "") -> None:
        super().__init__(delay_s, message)
        if delay_s is not None and not 0 <= delay_s <= LONGEST_DELAY_S:
            raise ValueError(f"delay_s must be from 0 to {LONGEST_DELAY_S}, not {delay_s}")
        self.delay_s = delay_s
        self.message = printable(message) or "the handler asked to be tried again"


class OutcomeUnknown(Exception):
    """Raised by a handler whose call may have happened and can't be repeated: held until that is settled."""

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = printable(message)
        self.result = result


@dataclasses.dataclass(frozen=True, slots=True)
class Costed:
    """Returned by a handler whose result does not say itself what the run has cost."""

    result: dict[str, Any]
    cost_usd: float


class Unusable(Exception):
    """A handler returned something that can't be stored as the run's result."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def as_result(returned: Any, limit_bytes: int) -> dict[str, Any]:
    """What a handler returned, as the JSON object to store. Raises Unusable.

    None is an empty object; models and dataclasses are their fields; other JSON is under `data`.
    """
    value = _plain(returned)
    result = {} if value is None else value if isinstance(value, dict) else {"data": value}
    why = storable(result, RESULT_DEPTH)
    if why is not None:
        raise Unusable("invalid_result", f"the handler's result can't be stored: {why}")
    size = len(compact_json(result))
    if size > limit_bytes:
        raise Unusable(
            "result_too_large", f"the result is {size} bytes as compact JSON; at most {limit_bytes} are kept"
        )
    return result


def _plain(returned: Any) -> Any:
    try:
        if isinstance(returned, BaseModel):
            return returned.model_dump(mode="json")
        if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
            return dataclasses.asdict(returned)
    except Exception as error:  # a field's own code may raise anything
        raise Unusable(
            "invalid_result", f"the handler's result can't be stored: {described(error)}"
        ) from error
    return returned


def described(error: BaseException) -> str:
    """An exception as text for people: `Type: message`."""
    try:
        text = str(error)
    except Exception:  # an exception's own __str__ is a handler's code too
        text = "(its text can't be shown)"
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def printable(text: object, length: int = MAX_MESSAGE) -> str:
    """The text as Postgres can keep it: cut, without NUL characters and lone surrogates."""
    return str(text)[:length].replace("\x00", "").encode("utf-8", "replace").decode()
