"""Every bound of the system, with its reason and its relation to the others.

Relations are asserted at import, so that a change of one bound that breaks another is found at
once. Bytes unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- coding profile -------------------------------------------------------------------------
DATA_SHARDS_MAX: Final = 16  # more disks than eight a box, ten boxes, never share one stripe
PARITY_SHARDS_MAX: Final = 8
POOL_DISKS_MAX: Final = 80  # ten boxes of eight disks

# --- stripes --------------------------------------------------------------------------------
SECTOR_SIZE: Final = 16 * KIB  # AEAD unit; measured in docs/performance.md
AEAD_TAG_SIZE: Final = 16
SEALED_SECTOR_SIZE: Final = SECTOR_SIZE + AEAD_TAG_SIZE
STRIPE_SECTORS_MAX: Final = 256  # 4 MiB of plaintext: one seek's worth per disk at k = 4
STRIPE_SIZE_MAX: Final = STRIPE_SECTORS_MAX * SECTOR_SIZE
STRIPE_SALT_SIZE: Final = 24  # 192 bits: random salts never collide

# --- memory ---------------------------------------------------------------------------------
# Stripes that are full but not yet written. With coding overhead ≤ 3x and six of them this is the
# largest consumer of memory; the default fits a 2 GiB box many times over.
STRIPES_IN_FLIGHT_MAX: Final = 6
STRIPE_READ_CACHE_SIZE: Final = 48 * MIB  # raw shards read ahead, whole pool
INODE_CACHE_ENTRIES: Final = 16_384
DENTRY_CACHE_ENTRIES: Final = 32_768
EXTENT_NODE_CACHE_ENTRIES: Final = 8_192
STRIPE_RECORD_CACHE_ENTRIES: Final = 8_192
STRIPE_CIPHER_CACHE_ENTRIES: Final = 1_024
DIRTY_OBJECTS_MAX: Final = 2_048  # written-back objects a state commit must flush

# --- log ------------------------------------------------------------------------------------
LOG_INLINE_MAX: Final = 256 * KIB  # unlogged data up to this rides in the log at a barrier
LOG_RECORD_SIZE_MAX: Final = 16 * MIB  # one sealed batch
LOG_BUFFER_COMMANDS_MAX: Final = 32_768  # commands held before a barrier is forced
LOG_FILE_SIZE: Final = 64 * MIB  # a log file is closed when it grows past this
LOG_SNAPSHOT_AFTER: Final = 64 * MIB  # log bytes after which a state snapshot is due, at least

# --- time, seconds --------------------------------------------------------------------------
DURABLE_WITHIN_SECONDS: Final = 5.0  # contract of DESIGN §8: un-synced data is durable by then
STATE_COMMIT_SECONDS: Final = 5.0
DISK_PROBE_SECONDS: Final = 1.0
KERNEL_CACHE_SECONDS: Final = 86_400.0  # entry and attribute timeout: we are the only owner

# --- files and names ------------------------------------------------------------------------
NAME_LENGTH_MAX: Final = 255
SYMLINK_LENGTH_MAX: Final = 4095
XATTR_NAME_LENGTH_MAX: Final = 255
XATTR_VALUE_SIZE_MAX: Final = 64 * KIB
LINKS_MAX: Final = 2**31 - 1  # what stat can report to 32-bit readers
FILE_SIZE_MAX: Final = 2**63 - 1
EXTENT_NODE_SPAN: Final = 4 * MIB  # file bytes that one extent node covers
EXTENTS_INLINE_MAX: Final = 4  # extents that ride in the inode record itself
FUSE_WRITE_SIZE_MAX: Final = MIB  # the kernel's own ceiling: 256 pages

# --- disks ----------------------------------------------------------------------------------
SEGMENT_SIZE: Final = 256 * MIB  # a segment file is closed when it grows past this
DISK_QUEUE_MAX: Final = 64  # operations waiting for one disk before its users wait
DISK_RESERVE_FRACTION: Final = 0.02  # kept free on each disk, so that deletes always work
DISK_RESERVE_MIN: Final = 16 * MIB
DISK_RESERVE_MAX: Final = 4 * GIB

assert SECTOR_SIZE & (SECTOR_SIZE - 1) == 0, "sector arithmetic shifts and masks"
assert STRIPE_SIZE_MAX % SECTOR_SIZE == 0
assert STRIPE_SECTORS_MAX >= DATA_SHARDS_MAX, "each data shard of a full stripe has a sector"
assert LOG_INLINE_MAX * 4 <= LOG_RECORD_SIZE_MAX, "inlined data and its commands fit one record"
assert LOG_INLINE_MAX <= STRIPE_SIZE_MAX
assert EXTENT_NODE_SPAN % SECTOR_SIZE == 0
assert FUSE_WRITE_SIZE_MAX <= STRIPE_SIZE_MAX
assert DISK_RESERVE_MIN < DISK_RESERVE_MAX
