"""The volume's end of the node's log: counts what was appended, or refuses when there is no log."""

from __future__ import annotations

from dwfs.errors import DwfsError
from dwfs.log import MirroredLog
from dwfs.types import LogSequence, VolumeId


class LogStream:
    """Implements `dwfs.volume.Log`. Without a log, nothing can become durable: read-only."""

    def __init__(self, log: MirroredLog | None) -> None:
        self._log = log
        self.appended_records = 0
        self.appended_bytes = 0

    async def append(
        self, stream: VolumeId, payload: bytes, first: LogSequence, last: LogSequence
    ) -> None:
        """Write one record and make it durable."""
        if self._log is None:
            raise DwfsError("the pool is open read-only")
        await self._log.append(stream, payload, first, last)
        self.appended_records += 1
        self.appended_bytes += len(payload)
