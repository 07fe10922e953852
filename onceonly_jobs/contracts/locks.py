"""POST /check-lock."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from onceonly_jobs.contracts.fields import Fingerprint, Key, LockMetadata, Ttl, Wire, example


class CheckLockRequest(Wire):
    model_config = example(key="stripe:webhook:evt_1", ttl=7200, metadata={"source": "stripe"})

    key: Key
    ttl: Ttl | None = None
    metadata: LockMetadata | None = None
    fingerprint: Fingerprint | None = None


class CheckLockAnswer(BaseModel):
    """`locked`: the caller is the first in this window and may act. `duplicate`: somebody was before."""

    success: bool
    status: Literal["locked", "duplicate"]
    key: str
    ttl: int
    first_seen_at: str | None
