"""Python values as the JSON that travels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

Json = dict[str, Any]
MetadataLike = Any
"""A mapping, a pydantic model or a dataclass; anything else is sent as its text."""


def metadata(value: MetadataLike | None) -> Json | None:
    """The JSON object that is sent as metadata. What has no JSON form in it is sent as text."""
    if value is None:
        return None
    if isinstance(value, BaseModel):
        return _wrapped(value.model_dump(mode="json"))
    if _is_dataclass(value):
        value = asdict(value)
    if isinstance(value, Mapping):
        plain: Json = json.loads(json.dumps(dict(value), ensure_ascii=False, default=str))
        return plain
    return {"value": str(value)}


def result(value: Any) -> Json | None:
    """The JSON object that is stored as a function's result.

    Objects are stored as they are; anything else as `{"value": <its text>}`, as the published SDK does.
    Raises TypeError for an object with something in it that has no JSON form.
    """
    if value is None:
        return None
    if is_object(value):
        return _wrapped(jsonable(value))
    return {"value": str(value)}


def is_object(value: Any) -> bool:
    """Whether a value is a JSON object by nature: a mapping, a model, a dataclass."""
    return isinstance(value, Mapping | BaseModel) or _is_dataclass(value)


def jsonable(value: Any) -> Any:
    """A value as plain JSON. Raises TypeError where it has no such form."""
    try:
        plain = to_jsonable_python(value)
        json.dumps(plain, allow_nan=False)
    except (PydanticSerializationError, ValueError) as error:
        raise TypeError(f"a result must have a JSON form: {error}") from None
    return plain


def _is_dataclass(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _wrapped(plain: Any) -> Json:
    return plain if isinstance(plain, dict) else {"data": plain}
