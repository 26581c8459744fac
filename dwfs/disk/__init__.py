"""One disk of a pool: its identity, its worker threads, and the segments that hold its shards.

- `Medium`, `PosixMedium`: the file operations on which all of it rests.
- `Executor`, `DiskExecutor`: the few threads that do one disk's I/O, and give up what hangs.
- `PoolHeader`, `read_header`, `write_header`, `verify_header`, `survey_headers`: the copy of the
  pool's description that every disk carries.
- `SegmentStore`, `DiskIndex`: shards in append-only segments, and where each of them lies.
- `Attendance`, `read_attendance`, `write_attendance`: which opening of the disk was the last one.
- `erase_disk`: an empty directory again.
- `probe`, `free_space`: is the disk there, and how much room has it.

The formats are described in docs/formats.md.
"""

from dwfs.disk.attendance import (
    ATTENDANCE_NAME,
    Attendance,
    read_attendance,
    write_attendance,
)
from dwfs.disk.erase import erase_disk
from dwfs.disk.executor import DiskExecutor, Executor
from dwfs.disk.header import (
    DiskMember,
    PoolHeader,
    StoredHeader,
    read_header,
    verify_header,
    write_header,
)
from dwfs.disk.index import DiskIndex, TransactionSource
from dwfs.disk.medium import POSIX_MEDIUM, Buffer, Medium, MediumSpace, PosixMedium
from dwfs.disk.probe import DiskCondition, probe
from dwfs.disk.space import FreeSpace, free_space, share_space
from dwfs.disk.store import SegmentStore
from dwfs.disk.survey import HeaderSurvey, survey_headers

__all__ = [
    "ATTENDANCE_NAME",
    "POSIX_MEDIUM",
    "Attendance",
    "Buffer",
    "DiskCondition",
    "DiskExecutor",
    "DiskIndex",
    "DiskMember",
    "Executor",
    "FreeSpace",
    "HeaderSurvey",
    "Medium",
    "MediumSpace",
    "PoolHeader",
    "PosixMedium",
    "SegmentStore",
    "StoredHeader",
    "TransactionSource",
    "erase_disk",
    "free_space",
    "probe",
    "read_attendance",
    "read_header",
    "share_space",
    "survey_headers",
    "verify_header",
    "write_attendance",
    "write_header",
]
