"""Secrets at rest: encrypted with a key that the database does not have, and bound to where they belong."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from onceonly_jobs.domain.fingerprint import canonical_json
from onceonly_jobs.errors import SecretUnreadable

FORMAT = "v1"
KEY_BYTES = 32
KEY_ID_BYTES = 4
NONCE_BYTES = 12


class Vault:
    """Seals and opens secrets with AES-256-GCM under a key derived (HKDF-SHA256) from ONCEONLY_SECRET_KEY.

    A sealed secret is `v1.<key id>.<base64 of nonce and ciphertext>`. The key id is derived too and gives nothing
    away; with it, rows of an older key can be found and another key be added.
    """

    def __init__(self, secret_key: str) -> None:
        derived = HKDF(
            algorithm=SHA256(), length=KEY_BYTES + KEY_ID_BYTES, salt=None, info=b"onceonly-jobs vault v1"
        ).derive(secret_key.encode("utf-8", "surrogateescape"))
        self._cipher = AESGCM(derived[:KEY_BYTES])
        self._header = f"{FORMAT}.{derived[KEY_BYTES:].hex()}"

    def seal(self, secret: str, *place: str) -> str:
        """The secret, readable only with the same key and at the same place."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, secret.encode(), self._bound_to(place))
        return f"{self._header}.{urlsafe_b64encode(sealed).decode()}"

    def open(self, sealed: str, *place: str) -> str:
        """The secret. Raises SecretUnreadable: another key's, from another place, or damaged."""
        header, _, body = sealed.rpartition(".")
        if header != self._header:
            raise SecretUnreadable("it was encrypted with another ONCEONLY_SECRET_KEY")
        try:
            raw = urlsafe_b64decode(body)
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], self._bound_to(place)).decode()
        except (InvalidTag, ValueError):
            raise SecretUnreadable("it is damaged, or belongs to another row") from None

    def _bound_to(self, place: tuple[str, ...]) -> bytes:
        return canonical_json([self._header, *place])
