"""RFC 8785 (JCS) canonical JSON: the same bytes in every language, so that a hash can be recomputed anywhere."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from onceonly_jobs.domain.fingerprint import storable


def args_hash(args: dict[str, Any]) -> str:
    """SHA-256 of the arguments' RFC 8785 form, lower-case hex: equal calls of a tool have equal hashes.

    Raises ValueError for what has no such form, integers beyond 2^53 - 1 among it. RFC 8785 numbers are
    doubles: two account numbers that differ in their last digit would become one, and the second call would
    be taken for a repeat of the first. Such numbers have to be sent as strings.
    """
    why = storable(args)
    if why is not None:
        raise ValueError(why)
    try:
        return hashlib.sha256(rfc8785.dumps(args)).hexdigest()
    except rfc8785.IntegerDomainError:
        raise ValueError("an integer is beyond 2^53 - 1: send it as a string") from None
