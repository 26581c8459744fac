"""Making a disk that left its pool an empty directory again.

The header goes last: as long as anything else of ours is there, the directory still says whose it was,
and whoever finds it after a crash can erase it again. Only names that dwfs gives are touched; what else
somebody put there stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dwfs.disk.attendance import ATTENDANCE_NAME
from dwfs.disk.header import HEADER_NAME, PREVIOUS_NAME, TEMPORARY_SUFFIX
from dwfs.disk.medium import POSIX_MEDIUM, Medium
from dwfs.disk.segment import DIRECTORY_NAME, SUFFIX

# The folders of a disk and how the files in them may end. The log's names stand here and not there,
# because a disk is erased without its log being understood.
_FOLDERS: Final = {
    DIRECTORY_NAME: (SUFFIX,),
    "log": (".log", ".log.part"),
    "snapshots": (".snap", ".snap.part"),
}
_FILES: Final = (ATTENDANCE_NAME, PREVIOUS_NAME, HEADER_NAME)


def erase_disk(directory: Path, medium: Medium = POSIX_MEDIUM) -> None:
    """Remove dwfs's files; blocking. Nothing may have them open. Raises OSError; may be repeated."""
    for folder, endings in _FOLDERS.items():
        place = directory / folder
        for name in medium.names(place):
            if name.endswith(endings):
                medium.remove(place / name)
        if medium.is_directory(place):
            medium.sync_directory(place)  # or a crash might keep its files and lose the header
            medium.remove_directory(place)
    medium.sync_directory(directory)
    for name in _FILES:
        medium.remove(directory / (name + TEMPORARY_SUFFIX))
        medium.remove(directory / name)
    medium.sync_directory(directory)
