"""A volume: its commands, the state machine that applies them, and the log's driver.

`Volume` is the facade that upper layers use. A composition root builds it from the bottom:
`StateStore` → `VolumeState` → (`recover`) → `EmbeddedReplicator` → `Volume`.
"""

from dwfs.volume.records import DirectoryEntry, Inode, Usage
from dwfs.volume.recovery import Recovery, recover
from dwfs.volume.replicator import EmbeddedReplicator, Log
from dwfs.volume.state import VolumeState
from dwfs.volume.store import StateStore
from dwfs.volume.volume import Volume

__all__ = [
    "DirectoryEntry",
    "EmbeddedReplicator",
    "Inode",
    "Log",
    "Recovery",
    "StateStore",
    "Usage",
    "Volume",
    "VolumeState",
    "recover",
]
