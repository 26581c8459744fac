"""A volume: its commands, the state machine that applies them, and the log's driver.

`Volume` is the facade that upper layers use. A composition root builds it from the bottom:
`StateStore` → `VolumeState` → (`recover`) → `EmbeddedReplicator` → `Volume`.
"""

from dwfs.volume.properties import Properties
from dwfs.volume.records import DirectoryEntry, DirectoryPage, Inode, Snapshot, Usage
from dwfs.volume.recovery import Recovery, recover
from dwfs.volume.replicator import EmbeddedReplicator, Log
from dwfs.volume.state import VolumeState
from dwfs.volume.store import StateStore
from dwfs.volume.view import SnapshotView
from dwfs.volume.volume import Volume

__all__ = [
    "DirectoryEntry",
    "DirectoryPage",
    "EmbeddedReplicator",
    "Inode",
    "Log",
    "Properties",
    "Recovery",
    "Snapshot",
    "SnapshotView",
    "StateStore",
    "Usage",
    "Volume",
    "VolumeState",
    "recover",
]
