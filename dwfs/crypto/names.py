"""Keyed hashes (BLAKE2b, RFC 7693) that stand for names and numbers in the keys of the state.

State keys are stored in the clear. A name's place in a directory, an extent node's place in a file
and an xattr's name therefore appear as the output of a pseudo-random function: without the key they
tell nothing, and nobody can craft names that collide. Collisions by chance are the caller's to
handle where digests are short (buckets for dentries and xattrs); 16 bytes do not collide.

`person` separates the three uses under one key.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

COOKIE_MASK = 0x7FFF_FFFF_FFFF_FFF8  # positive as a signed off_t; low 3 bits index in the bucket
COOKIE_MIN = 16  # below lie the cookies of "." and ".."

_PACK_INODE = struct.Struct(">Q").pack
_PACK_NODE = struct.Struct(">QQ").pack


class NameHasher:
    """Hashes under a volume's name key, which is borrowed: it stays in secret memory."""

    __slots__ = ("_key",)

    def __init__(self, key: memoryview) -> None:
        self._key = key

    def dentry(self, parent: int, name: bytes) -> int:
        """The cookie base of a name in a directory: a multiple of 8, from 16 up to 2^63 - 8."""
        digest = blake2b(
            _PACK_INODE(parent) + name, digest_size=8, key=self._key, person=b"dwfs dentry"
        ).digest()
        cookie = int.from_bytes(digest, "big") & COOKIE_MASK
        return cookie if cookie >= COOKIE_MIN else COOKIE_MIN

    def node(self, inode: int, index: int) -> bytes:
        """16 bytes that stand for extent node `index` of a file: hides how long files are."""
        return blake2b(
            _PACK_NODE(inode, index), digest_size=16, key=self._key, person=b"dwfs node"
        ).digest()

    def xattr(self, inode: int, name: bytes) -> bytes:
        """8 bytes that stand for an extended attribute's name."""
        return blake2b(
            _PACK_INODE(inode) + name, digest_size=8, key=self._key, person=b"dwfs xattr"
        ).digest()
