"""What a volume says about itself, and what may be asked of it: `dwfs volume`."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class VolumeStatus(msgspec.Struct, frozen=True):
    """One volume: what is set, and what is used."""

    name: str
    compression: str
    quota_bytes: int | None  # None: no limit
    quota_inodes: int | None
    trash_days: int  # 0: no trash
    snapshots_visible: bool
    used_bytes: int  # what counts against the quota
    used_inodes: int
    available_bytes: int  # what the quota and the pool leave
    snapshots: int
    data_bytes: int  # in stripes, before compression; snapshots' and garbage included
    packed_bytes: int  # the same, compressed; without redundancy


class VolumeList(msgspec.Struct, frozen=True):
    """All volumes of a pool."""

    volumes: list[VolumeStatus]


class VolumeChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be set; the rest stays."""

    compression: str | UnsetType = UNSET
    quota_bytes: int | UnsetType | None = UNSET
    quota_inodes: int | UnsetType | None = UNSET
    trash_days: int | UnsetType = UNSET
    snapshots_visible: bool | UnsetType = UNSET


class VolumeAnswer(msgspec.Struct, frozen=True):
    """What came of a change."""

    before: VolumeStatus
    volume: VolumeStatus
    warnings: list[str]  # what the administrator should know about it
