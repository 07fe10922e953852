"""Signatures of the requests that tools receive: this service's own headers, and those of Standard Webhooks.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping

ALGORITHM = "hmac_sha256"
TOLERANCE_S = 300


class BadSignature(ValueError):
    """A request that does not prove where it comes from. The message says what is wrong with it."""


def sign(secret: str, body: bytes, timestamp: int, message_id: str) -> dict[str, str]:
    """The headers that prove the body, with the names in lower case.

    `x-onceonly-signature` covers the body alone; `webhook-signature` covers id and time, too. Both are keyed
    with the secret's UTF-8 bytes. Raises ValueError for a message_id that is not visible ASCII.
    """
    if not message_id or not all("!" <= character <= "~" for character in message_id):
        raise ValueError("a message id is visible ASCII")
    key = secret.encode()
    webhook = hmac.digest(key, b"%s.%d.%s" % (message_id.encode(), timestamp, body), hashlib.sha256)
    return {
        "x-onceonly-signature": hmac.digest(key, body, hashlib.sha256).hex(),
        "x-onceonly-signature-alg": ALGORITHM,
        "x-onceonly-timestamp": str(timestamp),
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{b64encode(webhook).decode()}",
    }


def verify(
    secret: str, body: bytes, headers: Mapping[str, str], now: float, tolerance_s: float = TOLERANCE_S
) -> None:
    """Nothing, when whoever knows the secret sent this very body just now. Raises BadSignature.

    Names of headers may be in any case; each header of `sign` has to be there, and right.
    """
    given = {name.lower(): value for name, value in headers.items()}
    timestamp = given.get("x-onceonly-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise BadSignature("x-onceonly-timestamp: not a time in seconds")
    if abs(now - int(timestamp)) > tolerance_s:
        raise BadSignature(f"x-onceonly-timestamp: more than {tolerance_s:g} s off")
    try:
        expected = sign(secret, body, int(timestamp), given.get("webhook-id", ""))
    except ValueError as error:
        raise BadSignature(f"webhook-id: {error}") from None
    for name, value in expected.items():
        if not hmac.compare_digest(value.encode(), given.get(name, "").encode("utf-8", "replace")):
            raise BadSignature(f"{name}: missing or wrong")
