"""When a failed attempt is tried again."""

from __future__ import annotations

import math

RETRY_BASE_S = 1.0
RETRY_MAX_S = 300.0


def retry_delay_s(
    attempt: int, unit_random: float, base_s: float = RETRY_BASE_S, max_s: float = RETRY_MAX_S
) -> float:
    """Seconds to wait before the next attempt: exponential backoff with equal jitter.

    attempt counts from 1; unit_random is in [0, 1). Result lies in [d/2, d), d = min(max_s, base_s * 2**(attempt - 1)).
    Raises ValueError when attempt < 1.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog.
    """
    if attempt < 1:
        raise ValueError("attempt counts from 1")
    delay = min(max_s, math.ldexp(base_s, min(attempt - 1, 62)))
    return delay / 2 + unit_random * delay / 2
