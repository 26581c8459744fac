"""The requests that concern a volume's properties: `dwfs volume …` in the pool's owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import trio
from msgspec import UNSET

from dwfs.errors import UsageError
from dwfs.node.assembly import Pool
from dwfs.node.control import Arguments, Handler, Progress
from dwfs.node.disk_administration import services_of
from dwfs.node.volume_status import VolumeAnswer, VolumeChanges, VolumeList, VolumeStatus

# See `DwfsOperations.flush`: the kernel was told that it need not ask at close.
CLOSE_WARNING: Final = (
    "until the pool is mounted anew, a program that closes a file which did not fit may be told "
    "'Input/output error'; from fsync it hears 'Disk quota exceeded' at once"
)


class VolumeAdministration:
    """The requests of one open pool that concern its volume."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._setting = trio.Lock()

    def handlers(self) -> Mapping[str, Handler]:
        """Requests by name."""
        return {
            "volume.list": self.list_volumes,
            "volume.get": self.get,
            "volume.set": self.set,
        }

    async def list_volumes(self, arguments: Arguments, progress: Progress) -> object:
        """All volumes."""
        return VolumeList([self._status()])

    async def get(self, arguments: Arguments, progress: Progress) -> object:
        """The volume's properties, and what is used."""
        return self._status()

    async def set(self, arguments: Arguments, progress: Progress) -> object:
        """Change properties: all that are given, or none."""
        services_of(self._pool)  # a pool that is read-only takes no changes
        changes = msgspec.convert(dict(arguments), VolumeChanges)
        volume = self._pool.volume
        async with self._setting:  # or one of two changes at once would take the other's back
            before = self._status()
            given = {
                name: value
                for name, value in msgspec.structs.asdict(changes).items()
                if value is not UNSET
            }
            properties = msgspec.structs.replace(volume.properties, **given)
            try:
                properties.validate()
            except ValueError as error:
                raise UsageError(str(error)) from None
            await volume.set_properties(properties)
            self._pool.stripes.set_compression(properties.compression)
            await volume.barrier()
        self._pool.trash.look_soon()
        after = self._status()
        warnings = [*_quota_warnings(changes, after), *_trash_warnings(before, after)]
        if before.quota_bytes is None and after.quota_bytes and self._pool.options.mountpoint:
            warnings.append(CLOSE_WARNING)
        return VolumeAnswer(before, after, warnings)

    def _status(self) -> VolumeStatus:
        pool = self._pool
        volume, properties, usage = pool.volume, pool.volume.properties, pool.volume.usage()
        available_bytes = pool.stripes.free_bytes()
        if properties.quota_bytes is not None:
            left_bytes = properties.quota_bytes - usage.allocated_bytes
            available_bytes = max(0, min(available_bytes, left_bytes))
        totals = volume.catalog.totals()
        return VolumeStatus(
            name=pool.name,
            compression=properties.compression,
            quota_bytes=properties.quota_bytes,
            quota_inodes=properties.quota_inodes,
            trash_days=properties.trash_days,
            snapshots_visible=properties.snapshots_visible,
            used_bytes=usage.allocated_bytes,
            used_inodes=usage.inode_count,
            available_bytes=available_bytes,
            snapshots=len(volume.snapshots()),
            data_bytes=totals.logical_bytes,
            packed_bytes=totals.stored_bytes,
        )


def _quota_warnings(changes: VolumeChanges, after: VolumeStatus) -> list[str]:
    warnings = []
    if isinstance(changes.quota_bytes, int) and after.used_bytes > changes.quota_bytes:
        warnings.append(
            f"{after.name} uses {after.used_bytes} bytes, which is more than its quota of "
            f"{changes.quota_bytes}: nothing is lost, but nothing can be added until it uses less"
        )
    if isinstance(changes.quota_inodes, int) and after.used_inodes > changes.quota_inodes:
        warnings.append(
            f"{after.name} has {after.used_inodes} inodes, which is more than its quota of "
            f"{changes.quota_inodes}: nothing is lost, but no file can be made until it has fewer"
        )
    return warnings


def _trash_warnings(before: VolumeStatus, after: VolumeStatus) -> list[str]:
    if before.trash_days and not after.trash_days:
        return [
            "what lies in .trash stays there and counts as used: delete it by hand if nobody needs it"
        ]
    return []
