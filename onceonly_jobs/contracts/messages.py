"""What travels through the broker: permission to try a run. Names only, never payloads or secrets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MESSAGE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMessage:
    """One due run. `run` is its row; the rest is there to be read in Flower."""

    run: int
    tenant: str
    key: str
    agent: str | None = None
    v: int = MESSAGE_VERSION

    def kwargs(self) -> dict[str, Any]:
        return asdict(self)
