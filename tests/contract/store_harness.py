"""A real segment store in a temporary directory, with an index that can crash, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb

from dwfs.disk import DiskExecutor, DiskIndex, SegmentStore
from dwfs.disk.index import TABLES_PER_DISK, Transaction
from dwfs.types import DiskId, ShardKey, StripeId

DISK = DiskId(b"disk-for-testing")


class IndexEnvironment:
    """Plays the composition root's part: owns the LMDB environment and its one write transaction."""

    def __init__(self, directory: Path) -> None:
        self.environment = lmdb.open(
            str(directory / "index.mdb"),
            subdir=False,
            sync=False,
            metasync=False,
            map_size=1 << 28,
            max_dbs=8 * TABLES_PER_DISK,
        )
        self._transaction: Transaction = self.environment.begin(write=True)

    @property
    def transaction(self) -> Transaction:
        return self._transaction

    def commit(self) -> None:
        """What the state commit does every few seconds."""
        self._transaction.commit()
        self._transaction = self.environment.begin(write=True)

    def close(self, *, commit: bool) -> None:
        """Stop; without `commit`, as if the process had been killed."""
        if commit:
            self._transaction.commit()
        else:
            self._transaction.abort()
        self.environment.close()


class Harness:
    """The parts of a running store."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "disk"
        self.state = root / "state"
        self.directory.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        self.source = IndexEnvironment(self.state)
        self.executor = DiskExecutor("test")
        self.index = DiskIndex(self.source.environment, self.source, DISK)

    @classmethod
    def again(cls, other: Harness) -> Harness:
        """A second executor and index over the same directories and the same transaction."""
        harness = cls.__new__(cls)
        harness.directory, harness.state = other.directory, other.state
        harness.source = other.source
        harness.executor = DiskExecutor("again")
        harness.index = DiskIndex(other.source.environment, other.source, DISK)
        return harness

    async def open(self, *, trusted: bool = True) -> SegmentStore:
        store = await SegmentStore.open(
            self.directory, DISK, self.index, self.executor, trusted=trusted
        )
        self.source.commit()
        return store

    def segments(self) -> list[Path]:
        return sorted((self.directory / "segments").iterdir())


@asynccontextmanager
async def running_store(
    root: Path, *, trusted: bool = True, crash: bool = False
) -> AsyncIterator[tuple[SegmentStore, Harness]]:
    """Open a store below `root`. `crash`: leave as a killed process would, with no footer written
    and the index as of the last commit."""
    harness = Harness(root)
    store = await harness.open(trusted=trusted)
    try:
        yield store, harness
    finally:
        if not crash:
            await store.close()
        else:
            store._files.close()
        assert harness.executor.close()
        harness.source.close(commit=not crash)


def shard_key(stripe: int, number: int = 0) -> ShardKey:
    return ShardKey(StripeId(stripe.to_bytes(16, "big")), number)
