"""Which secret opens a stream: the pool's root key, a key file, or a passphrase.

With the root key, which is the default, only a pool with the same root key opens the stream. A key file
or passphrase that both sides are given says nothing about either pool.
"""

from __future__ import annotations

from typing import Protocol

from dwfs.crypto import Argon2Cost, KeyfileProtector, PassphraseProtector, SecretBytes, StreamKey
from dwfs.errors import DamageError, FormatError, UsageError, WrongKeyError
from dwfs.send.format import KeyCost


class KeyedHeader(Protocol):
    """What of a stream's header says how its key is made."""

    @property
    def stream(self) -> bytes:
        """Its id."""

    @property
    def key_kind(self) -> str:
        """Whose secret."""

    @property
    def salt(self) -> bytes:
        """What the secret is stretched with."""

    @property
    def cost(self) -> KeyCost | None:
        """For a passphrase."""

    @property
    def commitment(self) -> bytes:
        """What the right key gives."""


class StreamSecret:
    """A secret for streams. Deriving takes ~0.2 s with a passphrase: call it in a worker thread."""

    def __init__(self, root: SecretBytes, given: object = None) -> None:
        """`given`: the protector of a key file or passphrase; None: the root key itself."""
        if given is not None and not isinstance(given, KeyfileProtector | PassphraseProtector):
            raise UsageError("a stream is sealed with a key file or a passphrase")
        self._root = root
        self._given = given

    @property
    def kind(self) -> str:
        """As in the header."""
        return "pool" if self._given is None else self._given.kind

    @property
    def cost(self) -> KeyCost | None:
        """As in the header of a stream that is made."""
        cost = None if self._given is None else self._given.cost
        return None if cost is None else KeyCost(cost.memory_kib, cost.passes, cost.lanes)

    def key(self, stream: bytes, salt: bytes, cost: KeyCost | None) -> StreamKey:
        """The key of a stream."""
        if self._given is None:
            return StreamKey.of_root(self._root, salt, stream)
        effort = None if cost is None else Argon2Cost(cost.memory_kib, cost.passes, cost.lanes)
        with self._given.stretch(salt, effort) as secret:
            return StreamKey(secret, stream)

    def key_for(self, header: KeyedHeader) -> StreamKey:
        """The key of a stream that is there. Raises WrongKeyError, DamageError."""
        if header.key_kind != self.kind:
            raise WrongKeyError(_WANTED[header.key_kind])
        if header.cost is not None:
            cost = header.cost
            try:
                Argon2Cost(cost.memory_kib, cost.passes, cost.lanes).validate()
            except FormatError:
                raise DamageError(
                    f"the stream demands {cost.memory_kib} KiB, {cost.passes} passes and {cost.lanes} "
                    "lanes of Argon2id, more than this version takes on: it was made by a faulty program"
                ) from None
        key = self.key(header.stream, header.salt, header.cost)
        if not key.fits(header.commitment):
            raise WrongKeyError(_WRONG[self.kind])
        return key

    def wipe(self) -> None:
        """Forget what was given; the root key is its owner's."""
        if self._given is not None:
            self._given.wipe()


_WANTED = {
    "pool": "the stream was sealed with the root key of the pool that sent it, not with a key file or "
    "passphrase: leave out --stream-keyfile and --stream-passphrase-file",
    "keyfile": "the stream was sealed with a key file: give the same to --stream-keyfile",
    "passphrase": "the stream was sealed with a passphrase: give a file that holds it to "
    "--stream-passphrase-file",
}
_WRONG = {
    "pool": "the stream was sealed with the root key of the pool that sent it, and this pool has another: "
    "send it again with --stream-keyfile or --stream-passphrase-file, and give that here, too",
    "keyfile": "this key file is not the one that the stream was sealed with",
    "passphrase": "this passphrase is not the one that the stream was sealed with",
}
