"""The write-ahead log: many streams merged into one file sequence, mirrored on several disks.

`MirroredLog` appends durably, heals and trims; `MirroredLog.recover` reads back. State snapshots
(`SnapshotKeeper`, `find_snapshot`) bound the log. See docs/formats.md for bytes.

Duties of the user:

1. One `append` at a time; commands of a stream contiguous; after a failed append, the same
   commands come first in the next.
2. Order at mount: `recover`, `replay` to the end, then `open`, then `append`.
3. `trim` a stream only up to what a durable state snapshot covers, and below its `replay_from`.
4. `heal` whenever a disk failed, left, came back or is to be removed.
5. Run `watch` beside the log, or call `expire` a few times a second: it frees `append`, `heal` and the
   rest from a disk that hangs. `open` and `close` watch for themselves.
6. Before a disk leaves for good: `heal` until `needs` says 0, then `drop_copies`.
7. Replay gives records without commands that came after `replay_from - 1` even if the state holds
   their facts already, so facts must be idempotent.
"""

from dwfs.disk.medium import Medium, PosixMedium
from dwfs.log.healing import HealReport
from dwfs.log.mirrored import LogStatus, MirroredLog
from dwfs.log.ports import Executor, LogDisk, RecordCipher
from dwfs.log.recovery import LogInventory, RecoveredRecord
from dwfs.log.settings import LogSettings
from dwfs.log.snapshot_copies import SnapshotCopies, SnapshotReport, snapshot_holders
from dwfs.log.snapshot_format import SnapshotHeader
from dwfs.log.snapshot_keeper import SnapshotKeeper
from dwfs.log.snapshot_reader import Snapshot, find_snapshot, remove_older
from dwfs.log.snapshot_writer import SnapshotResult, SnapshotStoppedError, write_snapshot
from dwfs.log.verification import LogFinding, verify

__all__ = [
    "Executor",
    "HealReport",
    "LogDisk",
    "LogFinding",
    "LogInventory",
    "LogSettings",
    "LogStatus",
    "Medium",
    "MirroredLog",
    "PosixMedium",
    "RecordCipher",
    "RecoveredRecord",
    "Snapshot",
    "SnapshotCopies",
    "SnapshotHeader",
    "SnapshotKeeper",
    "SnapshotReport",
    "SnapshotResult",
    "SnapshotStoppedError",
    "find_snapshot",
    "remove_older",
    "snapshot_holders",
    "verify",
    "write_snapshot",
]
