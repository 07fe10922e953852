"""POST /ai/lease, /ai/extend, /ai/complete, /ai/fail, /ai/cancel, and what status and result answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel

from onceonly_jobs.contracts.fields import (
    ErrorCode,
    Fingerprint,
    Hash,
    JsonObject,
    Key,
    Label,
    LeaseId,
    Metadata,
    Ttl,
    Wire,
    example,
    usable,
)


class LeaseRequest(Wire):
    model_config = example(key="order:42:payment", ttl=300)

    key: Key
    ttl: Ttl | None = None
    metadata: Annotated[Metadata, AfterValidator(usable("run_id", "agent_id"))] | None = None
    fingerprint: Fingerprint | None = None


class ExtendRequest(Wire):
    model_config = example(key="order:42:payment", lease_id="lease_abc123xyz", ttl=300)

    key: Key
    lease_id: LeaseId
    ttl: Ttl | None = None


class CompleteRequest(Wire):
    model_config = example(key="order:42:payment", lease_id="lease_abc123xyz", result={"paid": True})

    key: Key
    lease_id: LeaseId
    result: JsonObject | None = None
    result_hash: Hash | None = None


class FailRequest(Wire):
    model_config = example(key="order:42:payment", lease_id="lease_abc123xyz", error_code="charge_failed")

    key: Key
    lease_id: LeaseId
    error_code: ErrorCode
    error_hash: Hash | None = None


class CancelRequest(Wire):
    model_config = example(key="order:42:payment", lease_id="lease_abc123xyz", reason="not needed any more")

    key: Key
    lease_id: LeaseId
    reason: Label | None = None


class LeaseAnswer(BaseModel):
    """The state of a key as seen by a call that tried to take it."""

    ok: bool
    status: Literal["acquired", "polling", "completed", "failed"]
    key: str
    ttl: int
    ttl_left: int | None
    lease_id: str | None
    version: int
    first_seen_at: str
    done_at: str | None
    result_hash: str | None
    error_code: str | None
    retry_after_sec: int | None
    usage: int
    limit: int
    charged: Literal[0, 1]
    result: dict[str, Any] | None = None


class StatusAnswer(BaseModel):
    ok: bool
    status: Literal["in_progress", "completed", "failed"]
    key: str
    ttl_left: int | None
    lease_id: None
    version: int
    first_seen_at: str
    done_at: str | None
    result_hash: str | None
    error_code: str | None
    retry_after_sec: int | None


class ResultAnswer(BaseModel):
    ok: bool
    status: Literal["in_progress", "completed", "failed"]
    key: str
    result: dict[str, Any] | None
    result_hash: str | None
    error_code: str | None
    done_at: str | None


class ExtendAnswer(BaseModel):
    ok: Literal[True]
    status: Literal["extended"]
    key: str
    ttl: int
    version: int


class CompleteAnswer(BaseModel):
    ok: Literal[True]
    status: Literal["completed"]
    key: str
    version: int
    done_at: str
    result_hash: str | None


class FailAnswer(BaseModel):
    ok: Literal[True]
    status: Literal["failed"]
    key: str
    version: int
    error_code: str
    done_at: str


class CancelAnswer(BaseModel):
    ok: Literal[True]
    status: Literal["cancelled"]
    key: str
    version: int
