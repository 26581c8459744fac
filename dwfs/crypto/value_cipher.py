"""Seals small values of the volume state: AES-256-GCM-SIV (RFC 8452) with random nonces.

Values are rewritten for years under one key, and the state may be rolled back by a crash, so a
counter can't be trusted and 96 random bits are too few for plain GCM. GCM-SIV makes a repeated
nonce harmless, short of showing that two equal values under the same key were equal.

Sealed value:
    format      1 byte    0x01; another format would have a key of its own, so it needs no AAD
    nonce      12 bytes   random
    ciphertext  n bytes   plaintext | 0x80 | zeros, to a multiple of 32: hides lengths of names
    tag        16 bytes   covers the ciphertext and the caller's AAD (the key of the entry)
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from dwfs.errors import AuthenticationError

_FORMAT = b"\x01"
_FORMAT_BYTE = _FORMAT[0]
_NONCE_END = 1 + 12
_PADDING_STEP = 32
_SEALED_SIZE_MIN = _NONCE_END + _PADDING_STEP + 16
# _PADDINGS[r] completes a plaintext whose length is r modulo 32.
_PADDINGS = tuple(b"\x80" + bytes(_PADDING_STEP - 1 - rest) for rest in range(_PADDING_STEP))


class ValueCipher:
    """Seals values of up to some hundred KiB; meant for some hundred bytes. Thread-safe."""

    __slots__ = ("_decrypt", "_encrypt", "_random_bytes")

    def __init__(self, key: memoryview, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        cipher = AESGCMSIV(key)
        self._encrypt = cipher.encrypt
        self._decrypt = cipher.decrypt
        self._random_bytes = random_bytes

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """Seal `plaintext`, bound to `aad`. 29 bytes and the padding longer."""
        nonce = self._random_bytes(12)
        padded = plaintext + _PADDINGS[len(plaintext) % _PADDING_STEP]
        return _FORMAT + nonce + self._encrypt(nonce, padded, aad)

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """The plaintext. Raises AuthenticationError."""
        if len(sealed) < _SEALED_SIZE_MIN or sealed[0] != _FORMAT_BYTE:
            raise AuthenticationError("a sealed value has an unknown format or is cut short")
        try:
            padded = self._decrypt(sealed[1:_NONCE_END], sealed[_NONCE_END:], aad)
        except InvalidTag:
            raise AuthenticationError("a sealed value is damaged or out of place") from None
        unpadded = padded.rstrip(b"\0")
        assert unpadded[-1] == 0x80, "authenticated values were padded by us"
        return unpadded[:-1]

    def wipe(self) -> None:
        """Drop the key schedule; any later use is an AttributeError."""
        del self._encrypt, self._decrypt
