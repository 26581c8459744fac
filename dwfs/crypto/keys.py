"""The key hierarchy: root key → header key, volume keys → purpose keys → one-use keys.

    root (32 random bytes, wrapped in keyslots)
    ├─ "dwfs header"                            → HMAC of the pool header
    ├─ "dwfs send root" ─ HKDF with the stream's salt → one AES-256-GCM key a stream
    └─ "dwfs volume" | pool | volume | version  → volume key
       ├─ "dwfs data"   ─ HKDF with the stripe's salt → one AES-256-GCM key a stripe
       ├─ "dwfs value"  → AES-256-GCM-SIV of state values
       ├─ "dwfs log" "dwfs snapshot"  ─ HKDF with the record's salt → one AES-256-GCM key a record
       └─ "dwfs name"   → keyed BLAKE2b

All keys of a volume lie in one locked page; views of it are lent to ciphers and released when the
volume's keys are wiped, so that a cipher that outlives its keys fails instead of using zeros.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from types import TracebackType

from dwfs.crypto.derivation import KEY_SIZE, OneUseKeys, derive, derive_into
from dwfs.crypto.names import NameHasher
from dwfs.crypto.record_cipher import RecordCipher
from dwfs.crypto.secret_memory import SecretBytes
from dwfs.crypto.stripe_cipher import StripeCipher
from dwfs.crypto.value_cipher import ValueCipher
from dwfs.limits import STRIPE_SALT_SIZE
from dwfs.types import PoolId, StripeId, VolumeId

ID_SIZE = 16

_PURPOSES = (b"dwfs data", b"dwfs value", b"dwfs log", b"dwfs snapshot", b"dwfs name")
_SCRATCHES = 3  # one for each maker of one-use keys: each has a lock of its own

_PACK_VERSION = struct.Struct(">I").pack


def new_root_key() -> SecretBytes:
    """A fresh root key for a new pool."""
    return SecretBytes.random(KEY_SIZE)


class VolumeKeys:
    """One volume's ciphers under one version of its key. Made by `RootKeys.volume`.

    `values` seals state values, `log` and `snapshots` seal records, `names` hashes names. Once
    wiped, none of them can be used; `StripeCipher`s that were handed out work until dropped.
    """

    def __init__(
        self,
        volume_key: SecretBytes,
        pool: PoolId,
        volume: VolumeId,
        version: int,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.version = version
        identity = pool + volume
        self._stripe_info = b"dwfs stripe" + identity
        self._version_bytes = _PACK_VERSION(version)
        self._slab = SecretBytes(KEY_SIZE * (len(_PURPOSES) + _SCRATCHES))
        with self._slab.view() as slab:
            self._views = [slab[at : at + KEY_SIZE] for at in range(0, len(slab), KEY_SIZE)]
        with volume_key.view() as key:
            for purpose, view in zip(_PURPOSES, self._views, strict=False):
                derive_into(key, b"", purpose, view)
        data, value, log, snapshot, name, *scratches = self._views
        record_info = b"dwfs record" + identity + self._version_bytes
        self._stripe_keys = OneUseKeys(data, scratches[0])
        self.values = ValueCipher(value, random_bytes)
        self.log = RecordCipher(OneUseKeys(log, scratches[1]), record_info, random_bytes)
        self.snapshots = RecordCipher(OneUseKeys(snapshot, scratches[2]), record_info, random_bytes)
        self.names = NameHasher(name)

    def stripe_cipher(self, stripe: StripeId, salt: bytes) -> StripeCipher:
        """The cipher of one sealing of one stripe; `salt` is 24 bytes, fresh for each sealing."""
        if len(stripe) != ID_SIZE or len(salt) != STRIPE_SALT_SIZE:
            raise ValueError("a stripe id has 16 bytes and a salt has 24")
        info = self._stripe_info + stripe + self._version_bytes
        return StripeCipher(self._stripe_keys.cipher(salt, info))

    def wipe(self) -> None:
        """Zero all keys and make every cipher unusable. May be repeated."""
        if self._slab.wiped:
            return
        for view in self._views:
            view.release()
        self.values.wipe()
        self._slab.wipe()


class RootKeys:
    """Everything that derives from the root key. Owns `root` and all it hands out.

    A context manager: on exit the root key, the header key and all volume keys are wiped.
    """

    def __init__(
        self,
        root: SecretBytes,
        pool: PoolId,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if len(root) != KEY_SIZE or len(pool) != ID_SIZE:
            raise ValueError("a root key has 32 bytes and a pool id has 16")
        self.root = root
        self._pool = pool
        self._random_bytes = random_bytes
        self._header_key = derive(root, b"", b"dwfs header" + pool)
        self._volumes: list[VolumeKeys] = []

    def header_key(self) -> SecretBytes:
        """The key of the pool header's MAC; stays owned by this object."""
        return self._header_key

    def volume(self, volume: VolumeId, version: int, salt: bytes = b"") -> VolumeKeys:
        """The keys of a volume under a version of its key.

        `salt` is for volumes that can be destroyed apart from the pool: a random value that is
        kept only in the pool header, so that erasing it there destroys the volume's keys.
        """
        if len(volume) != ID_SIZE:
            raise ValueError("a volume id has 16 bytes")
        info = b"dwfs volume" + self._pool + volume + _PACK_VERSION(version)
        with derive(self.root, salt, info) as volume_key:
            keys = VolumeKeys(volume_key, self._pool, volume, version, self._random_bytes)
        self._volumes.append(keys)
        return keys

    def wipe(self) -> None:
        """Wipe the root key, the header key and all volume keys. May be repeated."""
        for keys in self._volumes:
            keys.wipe()
        self._volumes.clear()
        self._header_key.wipe()
        self.root.wipe()

    def __enter__(self) -> RootKeys:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wipe()
