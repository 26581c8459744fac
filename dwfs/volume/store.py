"""`StateStore`: a volume's sealed key-value state in one LMDB environment.

One long write transaction is owned by the loop thread; all reads and writes of the state go through
it and cost a microsecond or two. `commit` ends it and begins the next. LMDB never syncs by itself:
the log is the truth, and after a power cut the environment is discarded (see docs/formats.md).

Every value is sealed with its key as associated data, so a value that was moved to another key does
not open. Empty values are the exception: they only mark that something was there (`mark`), and who
can forge one can as well remove keys, which nothing notices either. What stays visible to a thief of the state directory: the number of records of each kind,
inode numbers, and the rough size of each value.

After a failed write or commit the transaction is lost, and with it changes that the caches above
took for stored. The store then refuses everything (`failed`): the process goes on reading, and the
next mount recovers from the log.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol, TypeAlias, cast

import lmdb

from dwfs import limits
from dwfs.errors import AuthenticationError, DwfsError, NoSpaceError, PosixError, StateError

MAP_SIZE: Final = 256 * limits.GIB  # address space, not disk space: the ceiling of the state's size

META_KEY: Final = b"Mstate"
PROPERTIES_KEY: Final = b"Mproperties"
RECEIVE_KEY: Final = b"Mreceive"

KIND_INODE: Final = b"I"
KIND_DENTRY: Final = b"D"
KIND_NODE: Final = b"E"
KIND_XATTR: Final = b"X"
KIND_ORPHAN: Final = b"O"
KIND_STRIPE: Final = b"S"
KIND_SUMMARY: Final = b"Y"
KIND_REFERENCE: Final = b"R"
KIND_SNAPSHOT: Final = b"N"
KIND_KEPT_VERSION: Final = b"V"
KIND_KEPT_BYTES: Final = b"B"
KIND_KEPT_TOTAL: Final = b"U"
# Where one database is to hold several volumes, this tells whose the last four are.
ONLY_VOLUME: Final = bytes(4)


Get: TypeAlias = Callable[[bytes], bytes | None]
Put: TypeAlias = Callable[[bytes, bytes], None]
Delete: TypeAlias = Callable[[bytes], None]


class ValueCipher(Protocol):
    """Seals small values; `dwfs.crypto.ValueCipher`."""

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """Ciphertext bound to `aad`."""

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """The plaintext. Raises AuthenticationError."""


class NameHasher(Protocol):
    """Keyed hashes that stand for names and positions in keys; `dwfs.crypto.NameHasher`."""

    def dentry(self, parent: int, name: bytes) -> int:
        """60-bit directory cookie base: a multiple of 8, at least 16, below 2**63."""

    def node(self, inode: int, index: int) -> bytes:
        """16 bytes for one extent node."""

    def xattr(self, inode: int, name: bytes) -> bytes:
        """8 bytes for an extended attribute's name."""


class StateDamagedError(PosixError):
    """A value of the state does not authenticate: EIO for the request that needed it."""

    __slots__ = ()


class StateStore:
    """One LMDB environment; see the module's docstring for who may call what.

    Raises NoSpaceError when the state directory's disk is full, DwfsError for its other failures.
    """

    def __init__(
        self, path: Path, cipher: ValueCipher, names: NameHasher, map_size: int = MAP_SIZE
    ) -> None:
        self.names = names
        self.failed = False
        self._path = path
        self._open_value = cipher.open
        self._seal_value = cipher.seal
        environment = None
        try:
            self._environment = environment = lmdb.open(
                str(path),
                map_size=map_size,
                subdir=False,
                metasync=False,
                sync=False,
                writemap=False,
                readahead=False,
                # Or unused parts of pages would carry what the heap held before: plaintext, to a disk.
                meminit=True,
                max_readers=16,
            )
            self._begin()
        except lmdb.Error as error:
            if environment is not None:
                environment.close()
            raise self._failure("open", error) from error

    def _begin(self) -> None:
        self._transaction = self._environment.begin(write=True)
        self._cursor: lmdb.Cursor | None = None
        self._get = self._transaction.get
        self._put = self._transaction.put
        self._delete = self._transaction.delete

    def _failure(self, operation: str, error: lmdb.Error) -> DwfsError:
        self.failed = True
        text = f"state database {self._path}: {operation}: {error}; "
        if isinstance(error, lmdb.MapFullError):
            return NoSpaceError(text + "the volume has too many files")
        if "No space" in str(error) or "quota" in str(error):
            return NoSpaceError(text + "free space on its disk and mount again")
        return StateError(text + "mount again to rebuild it from the log")

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever committed to it."""
        return self._get(META_KEY) is None

    def get(self, key: bytes) -> bytes | None:
        """The plaintext value of `key`. Raises StateDamagedError."""
        sealed = self._get(key)
        if sealed is None:
            return None
        return self.unseal(key, sealed)

    def unseal(self, key: bytes, sealed: bytes) -> bytes:
        """Open a value that a scan delivered. Raises StateDamagedError."""
        try:
            return self._open_value(sealed, key)
        except AuthenticationError as error:
            detail = f"damaged value in {self._path}; rebuild the state with `dwfs import`"
            raise StateDamagedError(errno.EIO, detail) from error

    def seek(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The first (key, sealed value) at or after `key`, or None."""
        cursor = self._cursor
        if cursor is None:
            cursor = self._cursor = self._transaction.cursor()
        # bytes, and not views of them: the environment was opened without `buffers`
        return cast("tuple[bytes, bytes]", cursor.item()) if cursor.set_range(key) else None

    def seek_before(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The last (key, sealed value) before `key`, or None."""
        cursor = self.cursor()
        present = cursor.prev() if cursor.set_range(key) else cursor.last()
        return cast("tuple[bytes, bytes]", cursor.item()) if present else None

    def cursor(self) -> lmdb.Cursor:
        """A cursor over everything, for a walk during which nothing is changed."""
        return self._transaction.cursor()

    def has(self, key: bytes) -> bool:
        """Whether the key is there, with whatever value."""
        return self._get(key) is not None

    def count(self) -> int:
        """How many keys there are."""
        count: int = self._transaction.stat(self._environment.open_db(None, self._transaction))[
            "entries"
        ]
        return count

    def mark(self, key: bytes) -> None:
        """Store an empty value, unsealed."""
        try:
            self._put(key, b"")
        except lmdb.Error as error:
            raise self._failure("write", error) from error

    def put(self, key: bytes, value: bytes) -> None:
        """Seal and store."""
        try:
            self._put(key, self._seal_value(value, key))
        except lmdb.Error as error:
            raise self._failure("write", error) from error

    def with_suffix(self, suffix: bytes) -> tuple[Get, Put, Delete]:
        """`get`, `put` and `delete` of keys to which `suffix` is added: one call instead of two."""

        def get(key: bytes) -> bytes | None:
            stored = key + suffix
            sealed = self._get(stored)
            return None if sealed is None else self.unseal(stored, sealed)

        def put(key: bytes, value: bytes) -> None:
            stored = key + suffix
            try:
                self._put(stored, self._seal_value(value, stored))
            except lmdb.Error as error:
                raise self._failure("write", error) from error

        def delete(key: bytes) -> None:
            self.delete(key + suffix)

        return get, put, delete

    def delete(self, key: bytes) -> None:
        """Remove the key; a key that is not there is fine."""
        try:
            self._delete(key)
        except lmdb.Error as error:
            raise self._failure("delete", error) from error

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, sealed value) of keys with `prefix`, in order, from `start` on.

        The state must not be changed while the iterator is in use.
        """
        cursor = self._transaction.cursor()
        if cursor.set_range(start or prefix):
            for key, sealed in cursor:
                if not key.startswith(prefix):
                    return
                yield key, sealed

    def commit(self) -> None:
        """End the write transaction and begin the next. Not durable before `sync`."""
        if self.failed:
            raise DwfsError(f"state database {self._path} failed earlier; mount again")
        try:
            self._transaction.commit()
            self._begin()
        except lmdb.Error as error:
            raise self._failure("commit", error) from error

    def sync(self) -> None:
        """Make the last commit durable (fsync; may take long, callable from a worker thread)."""
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise self._failure("sync", error) from error

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """All raw (key, sealed value) pairs of the last commit, for snapshots.

        Has a read transaction of its own from the first `next` on; any thread.
        """
        with self._environment.begin() as transaction:
            yield from transaction.cursor()

    def load(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace everything by raw pairs of a snapshot, and commit."""
        try:
            database = self._environment.open_db(None, txn=self._transaction)
            self._transaction.drop(database, delete=False)
            for key, sealed in pairs:
                self._put(key, sealed)
        except lmdb.Error as error:
            raise self._failure("load", error) from error
        self.commit()

    def close(self) -> None:
        """Give up what was not committed and close the environment."""
        if not self.failed:
            self._transaction.abort()
        self._environment.close()
