"""One disk of a pool: its identity, its worker threads, and the segments that hold its shards.

- `DiskExecutor`: the few threads that do one disk's I/O.
- `PoolHeader`, `read_header`, `write_header`, `verify_header`, `survey_headers`: the copy of the
  pool's description that every disk carries.
- `SegmentStore`, `DiskIndex`: shards in append-only segments, and where each of them lies.
- `probe`, `free_space`: is the disk there, and how much room has it.

The formats are described in docs/formats.md.
"""

from dwfs.disk.executor import DiskExecutor
from dwfs.disk.header import (
    DiskMember,
    PoolHeader,
    StoredHeader,
    read_header,
    verify_header,
    write_header,
)
from dwfs.disk.index import DiskIndex, TransactionSource
from dwfs.disk.probe import DiskCondition, probe
from dwfs.disk.space import FreeSpace, free_space
from dwfs.disk.store import SegmentStore
from dwfs.disk.survey import HeaderSurvey, survey_headers

__all__ = [
    "DiskCondition",
    "DiskExecutor",
    "DiskIndex",
    "DiskMember",
    "FreeSpace",
    "HeaderSurvey",
    "PoolHeader",
    "SegmentStore",
    "StoredHeader",
    "TransactionSource",
    "free_space",
    "probe",
    "read_header",
    "survey_headers",
    "verify_header",
    "write_header",
]
