"""Canonical JSON and what is hashed from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MAX_DEPTH = 64
RESULT_DEPTH = MAX_DEPTH + 3
"""Of a job's result, which may hold what was sent or answered: that of a run of actions has it three levels down."""
MAX_INT = 2**63 - 1
MIN_INT = -(2**63)


def canonical_json(value: Any) -> bytes:
    """Compact UTF-8 JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    ).encode()


def compact_json(value: Any) -> bytes:
    """Compact UTF-8 JSON in the order given: what a size limit measures, and what is stored."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def result_hash(result: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON, lower-case hex."""
    return hashlib.sha256(canonical_json(result)).hexdigest()


def storable(value: Any, deepest: int = MAX_DEPTH, depth: int = 0) -> str | None:
    """Why this JSON value can't be kept exactly, or None when it can.

    Refused: nesting deeper than `deepest`, integers beyond 64 bits, NaN and infinities, and text that is not
    storable in Postgres (NUL, lone surrogates).
    """
    if depth > deepest:
        return f"nested deeper than {deepest} levels"
    if isinstance(value, str):
        return _storable_text(value)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if MIN_INT <= value <= MAX_INT else "integer does not fit 64 bits"
    if isinstance(value, float):
        return None if value - value == 0 else "not a finite number"
    if isinstance(value, dict):
        within = ((_storable_key(k), storable(v, deepest, depth + 1)) for k, v in value.items())
        return next((why for both in within for why in both if why), None)
    if isinstance(value, list | tuple):
        return next((why for v in value if (why := storable(v, deepest, depth + 1))), None)
    return f"{type(value).__name__} is not JSON"


def _storable_key(key: Any) -> str | None:
    return _storable_text(key) if isinstance(key, str) else "object keys must be strings"


def _storable_text(text: str) -> str | None:
    if "\x00" in text:
        return "text contains a NUL character"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "text contains a lone surrogate"
    return None
