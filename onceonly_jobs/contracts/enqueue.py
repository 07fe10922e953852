"""What `Jobs.enqueue` is asked for: a run request as over HTTP, and what only a trusted caller may choose."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, ValidationError

from onceonly_jobs.contracts.fields import Text, Wire
from onceonly_jobs.contracts.runs import RunRequest
from onceonly_jobs.errors import EnqueueError

LONGEST_DELAY_S = 10 * 365 * 86_400.0


class Options(Wire):
    queue: Annotated[Text, Field(min_length=1, max_length=200, pattern=r"^\S+$")] | None = None
    delay: Annotated[float, Field(strict=False, ge=0, le=LONGEST_DELAY_S, allow_inf_nan=False)] = 0


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    job: str
    key: str
    metadata: dict[str, Any] | None
    fingerprint: str | None
    ttl_s: int | None
    queue: str | None
    delay_s: float

    @classmethod
    def of(
        cls,
        job: str,
        key: str,
        *,
        payload: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        delay: float | timedelta = 0,
        queue: str | None = None,
        ttl: int | None = None,
        fingerprint: str | None = None,
    ) -> EnqueueRequest:
        """The arguments, held to the rules of POST /ai/run. The payload travels in the metadata.

        Raises EnqueueError.
        """
        carried: Any = metadata
        if payload is not None and (metadata is None or isinstance(metadata, dict)):
            carried = {**(metadata or {}), "payload": payload}
        delay_s = delay.total_seconds() if isinstance(delay, timedelta) else delay
        try:
            run = RunRequest.model_validate(
                {"key": key, "ttl": ttl, "metadata": carried, "fingerprint": fingerprint}
            )
            options = Options.model_validate({"queue": queue, "delay": delay_s})
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['msg']}" for e in error.errors()]
            raise EnqueueError("; ".join(lines)) from None
        return cls(job, key, run.metadata, run.fingerprint, run.ttl, options.queue, options.delay)
