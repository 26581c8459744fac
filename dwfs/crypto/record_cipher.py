"""Seals records of any size (log batches, state snapshots): salt-derived one-use AES-256-GCM.

GCM-SIV passes over the data twice and runs at a tenth of GCM's speed, too slow for records of up
to 16 MiB. Plain GCM with a random 96-bit nonce must not be used for more than 2^32 records. So, in
the manner of XAES-256-GCM (C2SP), a fresh 192-bit salt derives a key for this one record, and the
nonce is zero, used exactly once. 2^80 records share a salt with probability 2^-33.

Sealed record:
    format      1 byte    0x01; another format would have a key of its own, so it needs no AAD
    salt       24 bytes   random; authenticated in that another salt gives another key
    ciphertext  n bytes   as long as the payload
    tag        16 bytes   covers the ciphertext and the caller's AAD
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from dwfs.crypto.derivation import OneUseKeys
from dwfs.crypto.secret_memory import BytesLike
from dwfs.errors import AuthenticationError

RECORD_OVERHEAD = 1 + 24 + 16

_FORMAT = b"\x01"
_SALT_SIZE = 24
_SALT_END = 1 + _SALT_SIZE
_NONCE = bytes(12)


class RecordCipher:
    """Seals records, each under a key of its own. Thread-safe; big ones belong in a thread."""

    __slots__ = ("_info", "_keys", "_random_bytes")

    def __init__(
        self,
        keys: OneUseKeys,
        info: bytes,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._keys = keys
        self._info = info
        self._random_bytes = random_bytes

    def seal(self, payload: BytesLike, aad: bytes) -> bytes:
        """Seal `payload`, bound to `aad`. `RECORD_OVERHEAD` bytes longer."""
        salt = self._random_bytes(_SALT_SIZE)
        cipher = self._keys.cipher(salt, self._info)
        return b"".join((_FORMAT, salt, cipher.encrypt(_NONCE, payload, aad)))

    def open(self, sealed: BytesLike, aad: bytes) -> bytes:
        """The payload. Raises AuthenticationError."""
        if len(sealed) < RECORD_OVERHEAD or sealed[0] != _FORMAT[0]:
            raise AuthenticationError("a sealed record has an unknown format or is cut short")
        view = memoryview(sealed)
        cipher = self._keys.cipher(bytes(view[1:_SALT_END]), self._info)
        try:
            return cipher.decrypt(_NONCE, view[_SALT_END:], aad)
        except InvalidTag:
            raise AuthenticationError("a sealed record is damaged or out of place") from None
