"""The one LMDB environment that holds the shard indexes of all disks, and its long transaction.

It lies in the state directory, not on the disks it describes: a memory map of a dying disk kills the
process with SIGBUS. All access is on the loop thread, through the write transaction of the moment,
which is committed together with the volumes' state. No commit is synced: after a machine crash the
indexes are rebuilt from the segments (see `marker`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import lmdb

from dwfs.disk.index import TABLES_PER_DISK, Transaction
from dwfs.errors import DwfsError, NoSpaceError, StateError
from dwfs.limits import GIB, POOL_DISKS_MAX

MAP_SIZE: Final = 64 * GIB  # address space only; some 500 million shards
_NOTES: Final = b"notes"  # a table of small things that must be committed with the indexes
# A disk that is removed gives its tables back, but only with the next commit.
_DISKS_MAX: Final = 2 * POOL_DISKS_MAX


class IndexEnvironment:
    """Implements `dwfs.disk.TransactionSource`. Raises DwfsError when the environment fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        environment = None
        try:
            self.environment = environment = lmdb.open(
                str(path),
                map_size=MAP_SIZE,
                max_dbs=TABLES_PER_DISK * _DISKS_MAX + 1,
                subdir=False,
                metasync=False,
                sync=False,
                writemap=False,
                readahead=False,
                # Or unused parts of pages would carry what the heap held before: plaintext, to a disk.
                meminit=True,
            )
            self._transaction: Transaction = self.environment.begin(write=True)
            self._notes = self.environment.open_db(_NOTES, txn=self._transaction)
        except lmdb.Error as error:
            if environment is not None:
                environment.close()
            raise self._failure("open", error) from error

    @property
    def transaction(self) -> Transaction:
        """The open write transaction."""
        return self._transaction

    def note(self, name: bytes) -> bytes | None:
        """A note that was made earlier."""
        value = self._transaction.get(name, db=self._notes)
        return None if value is None else bytes(value)

    def set_note(self, name: bytes, value: bytes) -> None:
        """Make or replace a note; an empty value removes it. Lasts with the next commit."""
        if value:
            self._transaction.put(name, value, db=self._notes)
        else:
            self._transaction.delete(name, db=self._notes)

    def commit(self) -> None:
        """End the transaction and begin the next. Not durable before `sync`."""
        try:
            self._transaction.commit()
            self._transaction = self.environment.begin(write=True)
        except lmdb.Error as error:
            raise self._failure("commit", error) from error

    def sync(self) -> None:
        """Make the last commit durable; blocking, callable in a worker thread."""
        try:
            self.environment.sync(True)
        except lmdb.Error as error:
            raise self._failure("sync", error) from error

    def close(self) -> None:
        """Give up what was not committed and close."""
        try:
            self._transaction.abort()
        except lmdb.Error:
            pass  # the transaction ended in the failure that brought us here
        self.environment.close()

    def _failure(self, operation: str, error: lmdb.Error) -> DwfsError:
        text = f"shard index {self._path}: {operation}: {error}; "
        if "No space" in str(error) or "quota" in str(error):
            return NoSpaceError(text + "free space on its disk and mount again")
        return StateError(text + "mount again to rebuild it")
