"""Reading shards: by the index, with a second look at the index after each wait.

A shard may be replaced or deleted while a worker reads it; what came back may then be zeros, or the
segment may be gone. So the place is looked up again afterwards, and if it has changed the read begins
anew. Reads can be abandoned: a caller that has got its bytes elsewhere cancels, and the segment
stays open until the worker has come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

from dwfs import limits
from dwfs.disk.access import DiskAccess, Stopwatch
from dwfs.disk.faults import medium_error
from dwfs.disk.files import SegmentFiles
from dwfs.disk.ledger import SegmentLedger
from dwfs.disk.patience import Patience
from dwfs.disk.record import Location
from dwfs.disk.transfer import read_record, read_record_back
from dwfs.errors import ShardDamagedError, ShardMissingError
from dwfs.types import ShardKey

PATIENT_SIZE_MAX: Final = 64 * limits.KIB  # larger reads are worth a thread's wake-up
PATIENCE_SECONDS: Final = 200e-6  # little more than the wake-up and the way back cost

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


class ShardReader:
    """The reading half of a store."""

    def __init__(self, access: DiskAccess, ledger: SegmentLedger, files: SegmentFiles) -> None:
        self._access = access
        self._medium = access.medium
        self._ledger = ledger
        self._files = files
        self._patience = Patience()

    def locate(self, key: ShardKey) -> Location:
        """Where the shard lies. Raises ShardMissingError."""
        self._access.check()
        place = self._ledger.index.get(key)
        if place is None:
            name = f"{key.stripe.hex()[:8]}/{key.number}"
            raise ShardMissingError(self._access.disk, "find", f"no shard {name}")
        return place

    def read_cached(
        self, key: ShardKey, offset: int, length: int, *, patient: bool = True
    ) -> bytes | None:
        """Payload bytes if the segment is open and the page cache has them, else None.

        A small read is given a moment to arrive, if no call to the disk is under way: on a disk
        that hangs there soon is one, so the moment is lost once.
        """
        if self._access.retired:
            return None
        place = self._ledger.index.get(key)
        if place is None:
            return None
        length = max(0, min(length, place.payload_length - offset))
        file = self._files.peek(place.segment)
        if file is None:
            return None
        position = place.payload_offset + offset
        content = self._medium.read_cached(file.handle, position, length)
        if (
            content is not None
            or not patient
            or length > PATIENT_SIZE_MAX
            or self._access.executor.waiting()
            or not self._patience.worthwhile()
        ):
            return content
        content = self._medium.read_cached(file.handle, position, length, PATIENCE_SECONDS)
        self._patience.learn(arrived=content is not None)
        return content

    async def read(self, key: ShardKey, offset: int, length: int) -> bytes:
        """Payload bytes [offset, offset+length), clipped; unchecked. Raises MediumError kinds."""
        while True:
            place = self.locate(key)
            wanted = max(0, min(length, place.payload_length - offset))
            with Stopwatch(self._access.reads, self._access.now):
                content = await self._in_segment(
                    "read", key, place, self._medium.read, place.payload_offset + offset, wanted
                )
            if content is None:
                continue
            if len(content) < wanted:
                raise ShardDamagedError(self._access.disk, "read", "the segment is cut short")
            return content

    async def read_verified(self, key: ShardKey) -> tuple[bytes, bytes]:
        """(header, payload) of the whole shard, checked. Raises MediumError kinds."""

        def whole(handle: int, place: Location) -> tuple[bytes, bytes] | str:
            return read_record(self._medium, handle, key, place)

        return await self._verified("verify", key, whole)

    async def read_back(self, key: ShardKey) -> tuple[bytes, bytes]:
        """As `read_verified`, past the page cache."""

        def whole(handle: int, place: Location) -> tuple[bytes, bytes] | str:
            return read_record_back(self._medium, handle, key, place)

        return await self._verified("read back", key, whole)

    async def _verified(
        self,
        operation: str,
        key: ShardKey,
        whole: Callable[[int, Location], tuple[bytes, bytes] | str],
    ) -> tuple[bytes, bytes]:
        while True:
            place = self.locate(key)
            result = await self._in_segment(operation, key, place, whole, place)
            if result is None:
                continue
            if isinstance(result, str):
                raise ShardDamagedError(self._access.disk, operation, result)
            return result

    async def _in_segment(
        self,
        operation: str,
        key: ShardKey,
        place: Location,
        function: Callable[[int, *ArgumentsT], ResultT],
        *arguments: *ArgumentsT,
    ) -> ResultT | None:
        """Call with the open segment's handle; None if the shard has moved meanwhile."""
        try:
            file = await self._files.acquire(place.segment)
            result = await self._access.run_raw(
                function,
                file.handle,
                *arguments,
                afterwards=lambda: self._files.release(file),
                abandonable=True,
            )
        except OSError as error:
            if self._ledger.index.get(key) != place:
                return None
            raise medium_error(self._access.disk, operation, error) from error
        return None if self._ledger.index.get(key) != place else result
