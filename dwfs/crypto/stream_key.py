"""The key of one send stream: AES-256-GCM, with the number of a frame as nonce.

It derives from a secret that was stretched with 32 random bytes made for this stream, and from the
stream's random id, so it exists for this stream alone, and no number is used twice under it; that
each is sealed once only is checked here, as a repeated nonce would give the authentication key away.

GCM does not commit to its key. The commitment does: it stands in the stream's header, so a wrong
secret is told from damage, and nobody can make a stream that opens under two secrets.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dwfs.crypto.derivation import derive
from dwfs.crypto.secret_memory import SecretBytes
from dwfs.errors import AuthenticationError

_NONCE_SIZE: Final = 12


class StreamKey:
    """Seals frames in ascending order, or opens them. The secret is the caller's to wipe."""

    def __init__(self, secret: SecretBytes, stream: bytes) -> None:
        with derive(secret, b"", b"dwfs send key" + stream) as key, key.view() as view:
            self._cipher = AESGCM(view)
        with derive(secret, b"", b"dwfs send commitment" + stream) as key, key.view() as view:
            self.commitment = bytes(view)
        self._next = 0

    @classmethod
    def of_root(cls, root: SecretBytes, salt: bytes, stream: bytes) -> StreamKey:
        """The key of a stream that pools with this root key open."""
        with derive(root, salt, b"dwfs send root") as secret:
            return cls(secret, stream)

    def fits(self, commitment: bytes) -> bool:
        """Whether this is the key that a stream was made with."""
        return hmac.compare_digest(self.commitment, commitment)

    def seal(self, number: int, content: bytes, aad: bytes) -> bytes:
        """The content, sealed with `number` as nonce; the tag at the end."""
        if number < self._next:
            # Not an `assert`: this one must hold under `python -O` too.
            raise AssertionError(f"frame {number} would be sealed twice under one key")
        self._next = number + 1
        return self._cipher.encrypt(number.to_bytes(_NONCE_SIZE, "big"), content, aad)

    def open(self, number: int, sealed: bytes, aad: bytes) -> bytes:
        """The content. Raises AuthenticationError."""
        try:
            return self._cipher.decrypt(number.to_bytes(_NONCE_SIZE, "big"), sealed, aad)
        except InvalidTag:
            raise AuthenticationError(f"frame {number} is damaged or out of place") from None
