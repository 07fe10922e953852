"""Field types that several requests share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from onceonly_jobs.domain.fingerprint import compact_json, storable

METADATA_BYTES = 65_536
LOCK_METADATA_BYTES = 2048
MAX_UNIX_S = 253_402_214_400
"""The last midnight of the year 9999: a time that fits every time zone's year 9999."""


class Wire(BaseModel):
    """A request body: unknown fields are ignored, types are taken as they are, never converted."""

    model_config = ConfigDict(extra="ignore", strict=True)


T = TypeVar("T")


def example(**fields: Any) -> ConfigDict:
    """A model's configuration with an example for the documentation."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def _storable(value: T) -> T:
    why = storable(value)
    if why:
        raise ValueError(why)
    return value


def at_most(limit: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A check that an object is at most `limit` bytes as compact UTF-8 JSON."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        size = len(compact_json(value))
        if size > limit:
            raise ValueError(f"object is {size} bytes as compact JSON; at most {limit} are allowed")
        return value

    return check


def usable(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A check that these fields of metadata, which the server acts on, can be used where given."""

    def check(metadata: dict[str, Any]) -> dict[str, Any]:
        for name in names:
            value = metadata.get(name)
            if value is not None and (not isinstance(value, str) or not value.strip() or len(value) > 256):
                raise ValueError(f"metadata.{name} must be a non-blank string of at most 256 characters")
        return metadata

    return check


Text = Annotated[str, AfterValidator(_storable)]
Key = Annotated[
    str,
    Field(min_length=1, max_length=256, description="Idempotency key: the caller's name for one effect."),
    AfterValidator(_storable),
]
LeaseId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_storable)]
ErrorCode = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_storable)]
Hash = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_storable)]
Label = Annotated[str, Field(max_length=1024), AfterValidator(_storable)]
RunId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"\S"), AfterValidator(_storable)]
Ttl = Annotated[int, Field(ge=1, description="Seconds; clamped to [10, the plan's maximum].")]
Fingerprint = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        description="Hash of the request. The same key with another fingerprint is refused with 409.",
    ),
    AfterValidator(_storable),
]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
Metadata = Annotated[dict[str, Any], AfterValidator(_storable), AfterValidator(at_most(METADATA_BYTES))]
LockMetadata = Annotated[
    dict[str, Any], AfterValidator(_storable), AfterValidator(at_most(LOCK_METADATA_BYTES))
]


def utc_iso(at: datetime | None) -> str | None:
    """ISO 8601 in UTC with `Z`, whole seconds; None stays None."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix_s(at: datetime) -> int:
    return int(at.timestamp())
