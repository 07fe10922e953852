"""The name of a request, in its answer and in the log."""

from __future__ import annotations

import re
import secrets

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id_of(sent: str) -> str:
    """The caller's own, if it is one; else a new one."""
    return sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
