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
STRIPE_REFERENCES_MAX: Final = 8_192  # summary lines: a stripe of tinier writes closes early
CODING_INLINE_MAX: Final = 64 * KIB  # less is coded on the loop: a thread hop costs more
STRIPE_SALT_SIZE: Final = 24  # 192 bits: random salts never collide
# Compressed apart from the others, so that a small read expands no more; docs/decisions/0014.
FRAME_SIZE: Final = 64 * KIB
FRAME_GAIN_MIN: Final = 1 / 16  # a frame that compression makes smaller by less is kept as it is
FRAMES_PER_STEP: Final = 4  # compressed in one go, so that nobody waits long for the worker thread

# --- memory ---------------------------------------------------------------------------------
# Stripes that are full but not yet written. With coding overhead ≤ 3x and six of them this is the
# largest consumer of memory; the default fits a 2 GiB box many times over. A stripe that is to be
# compressed also holds its plaintext meanwhile.
STRIPES_IN_FLIGHT_MAX: Final = 6
# Written, but not yet synced: they hold no buffer, only work for the next sync (64 MiB of data).
STRIPES_UNSYNCED_MAX: Final = 16
STRIPE_READ_CACHE_SIZE: Final = 48 * MIB  # raw shards read ahead, whole pool
INODE_CACHE_ENTRIES: Final = 16_384
DENTRY_CACHE_ENTRIES: Final = 32_768
EXTENT_NODE_CACHE_ENTRIES: Final = 8_192
STRIPE_RECORD_CACHE_ENTRIES: Final = 8_192
STRIPE_CIPHER_CACHE_ENTRIES: Final = 1_024
SECTOR_CACHE_ENTRIES: Final = 64  # decrypted sectors that small sequential reads come back to
FRAME_CACHE_ENTRIES: Final = 64  # the same of expanded frames: 4 MiB
DIRTY_OBJECTS_MAX: Final = 2_048  # written-back objects a state commit must flush

# --- log ------------------------------------------------------------------------------------
LOG_INLINE_MAX: Final = 256 * KIB  # unlogged data up to this rides in the log at a barrier
LOG_RECORD_SIZE_MAX: Final = 16 * MIB  # one sealed batch
LOG_BUFFER_COMMANDS_MAX: Final = 32_768  # commands held before a barrier is forced
LOG_FILE_SIZE: Final = 64 * MIB  # a log file is closed when it grows past this
LOG_PREALLOCATION_SIZE: Final = 4 * MIB  # zeros written ahead of a log file's records at a time
LOG_SNAPSHOT_AFTER: Final = 64 * MIB  # log bytes after which a state snapshot is due, at least

# --- send and receive -----------------------------------------------------------------------
SEND_HEADER_SIZE_MAX: Final = 16 * KIB
SEND_DATA_SIZE: Final = MIB  # file bytes in one record, at most
SEND_FRAME_FILL: Final = MIB  # a frame is closed when its records take so much
SEND_FRAME_CONTENT_MAX: Final = 2 * MIB + 128 * KIB  # the fullest: almost closed, then one record
SEND_FRAME_SIZE_MAX: Final = SEND_FRAME_CONTENT_MAX + AEAD_TAG_SIZE
SEND_FRAMES_MAX: Final = 2**32  # 4 PiB: 2**49 blocks under one key, which GCM bears well
RECEIVE_MARK_SIZE: Final = 64 * MIB  # what an interrupted receive may have to do again

# --- time, seconds --------------------------------------------------------------------------
DURABLE_WITHIN_SECONDS: Final = 5.0  # promised in docs/operations.md for un-synced data
STATE_COMMIT_SECONDS: Final = 5.0
DISK_PROBE_SECONDS: Final = 1.0
KERNEL_CACHE_SECONDS: Final = 86_400.0  # entry and attribute timeout: we are the only owner
# Snapshots come and go without the kernel; what is in one never changes, only ends with it.
SNAPSHOT_NAME_CACHE_SECONDS: Final = 1.0
SNAPSHOT_CONTENT_CACHE_SECONDS: Final = 60.0

# --- files and names ------------------------------------------------------------------------
NAME_LENGTH_MAX: Final = 255
SYMLINK_LENGTH_MAX: Final = 4095
XATTR_NAME_LENGTH_MAX: Final = 255
XATTR_VALUE_SIZE_MAX: Final = 64 * KIB
LINKS_MAX: Final = 2**31 - 1  # what stat can report to 32-bit readers
FILE_SIZE_MAX: Final = 2**63 - 1
EXTENT_NODE_SPAN: Final = 4 * MIB  # file bytes that one extent node covers
EXTENTS_INLINE_MAX: Final = 4  # extents that ride in the inode record itself
SNAPSHOTS_MAX: Final = 4_096  # a volume: 11 years of hourly, daily and weekly ones, pruned as usual
SNAPSHOT_SLOTS_MAX: Final = 0x7FFE  # upper bits of inode numbers seen in `.snapshots`
FUSE_WRITE_SIZE_MAX: Final = MIB  # the kernel's own ceiling: 256 pages

# --- keyslots -------------------------------------------------------------------------------
KEYSLOTS_MAX: Final = 32  # every slot of a kind may cost one Argon2id run at opening
KEYSLOT_WRAPPED_SIZE_MAX: Final = 4 * KIB  # a TPM object with its policy takes about 1 KiB
KEYSLOT_LABEL_LENGTH_MAX: Final = 64
# A forged header must not be able to demand all memory, or a day, before its MAC can be checked.
ARGON2_MEMORY_KIB_MIN: Final = 8 * KIB
ARGON2_MEMORY_KIB_MAX: Final = 512 * KIB  # a quarter of the smallest box
ARGON2_PASSES_MAX: Final = 16
ARGON2_LANES_MAX: Final = 16
KEYFILE_SIZE_MIN: Final = 32  # what a 256-bit key needs, if the content is random
KEYFILE_SIZE_MAX: Final = MIB  # more is surely the wrong file

# --- disks ----------------------------------------------------------------------------------
SEGMENT_SIZE: Final = 256 * MIB  # a segment file is closed when it grows past this
DISK_QUEUE_MAX: Final = 64  # operations waiting for one disk before its users wait
DISK_CLOSE_SECONDS: Final = 30.0  # a hung disk's threads are abandoned after this, at close
OPEN_SEGMENTS_MAX: Final = 32  # read descriptors kept per disk; x 8 local disks < 1024 (nofile)
SHARD_HEADER_SIZE_MAX: Final = KIB  # opaque stripe-layer metadata beside each shard
POOL_HEADER_SIZE_MAX: Final = MIB  # 80 members and a few dozen keyslots take a few tens of KiB
ERASURE_TABLES_MAX: Final = 64  # decode tables kept per coder: one per recent erasure pattern
DISK_RESERVE_FRACTION: Final = 0.02  # kept free on each disk, so that deletes always work
DISK_RESERVE_MIN: Final = 16 * MIB
DISK_RESERVE_MAX: Final = 4 * GIB
# The reserve also has the room that log and snapshots grow into: a log until its snapshot is due,
# that snapshot, and what is logged while it is written. Small disks can't spare so much.
DISK_LOG_ROOM: Final = 2 * LOG_SNAPSHOT_AFTER
DISK_LOG_ROOM_FRACTION: Final = 1 / 16

# --- administration -------------------------------------------------------------------------
POOL_NAME_LENGTH_MAX: Final = 64  # becomes a file name and a mount source
CONFIG_SIZE_MAX: Final = 512 * KIB  # a pool's TOML file: POOL_DISKS_MAX paths of PATH_MAX bytes fit
SECRET_SIZE_MAX: Final = 64 * KIB  # a passphrase or key file; more is surely a mistake
CONTROL_REQUEST_SIZE_MAX: Final = 512 * KIB  # one JSON line; two hex-coded secrets fit
CONTROL_RESPONSE_SIZE_MAX: Final = 64 * MIB  # one JSON line; a check may name many files
CONTROL_CONNECTIONS_MAX: Final = 16  # administrators' commands at one time
CONTROL_REQUEST_SECONDS: Final = 10.0  # for a client to send its line
DISK_ERRORS_MAX: Final = 16  # failed operations after which a disk gets no new data
# An operation that takes longer is given up: a spun-down disk needs up to 10 s to answer.
DISK_DEADLINE_SECONDS: Final = 12.0
DISK_HANG_SECONDS: Final = 30.0  # a disk that answers nothing for so long is missing
# A missing disk's shards are rebuilt elsewhere after this: longer than a reboot or a loose cable.
DISK_REBUILD_SECONDS: Final = 900.0
HEDGE_SECONDS_MIN: Final = 0.03  # no read is hedged sooner: it would cost more than it saves
HEDGE_SECONDS_MAX: Final = 1.0
REPAIR_QUEUE_MAX: Final = 65_536  # stripes to be repaired that are remembered; more are found again
MEND_BATCH: Final = 16  # stripes repaired together: one sync a disk and one barrier for all
DISK_SIZE_MIN: Final = 64 * MIB  # free space that a disk must have to join a pool
SCHEDULED_SNAPSHOTS_MAX: Final = 500  # of one kind that a schedule may ask for
MOUNT_LOG_SIZE: Final = 4 * MIB  # a background mount's log file, before it is rotated once

assert SECTOR_SIZE & (SECTOR_SIZE - 1) == 0, "sector arithmetic shifts and masks"
assert STRIPE_SIZE_MAX % SECTOR_SIZE == 0
assert STRIPE_SECTORS_MAX >= DATA_SHARDS_MAX, "each data shard of a full stripe has a sector"
assert (1 - FRAME_GAIN_MIN) * FRAME_SIZE < 1 << 16, "a compressed frame's length takes 2 bytes"
assert LOG_INLINE_MAX * 4 <= LOG_RECORD_SIZE_MAX, "inlined data and its commands fit one record"
assert LOG_INLINE_MAX <= STRIPE_SIZE_MAX
assert EXTENT_NODE_SPAN % SECTOR_SIZE == 0
assert SNAPSHOTS_MAX * 4 < SNAPSHOT_SLOTS_MAX < 0x7FFF, "15 bits, and slots come back late"
assert 4 * SCHEDULED_SNAPSHOTS_MAX < SNAPSHOTS_MAX
assert FUSE_WRITE_SIZE_MAX <= STRIPE_SIZE_MAX
assert SEND_FRAME_FILL + SEND_DATA_SIZE + XATTR_VALUE_SIZE_MAX < SEND_FRAME_CONTENT_MAX
assert OPEN_SEGMENTS_MAX * 8 <= 512, "leave half of the usual descriptor limit to the rest"
assert SEGMENT_SIZE >= 8 * STRIPE_SIZE_MAX, "closing a segment is rare beside filling it"
assert DISK_RESERVE_MIN < DISK_RESERVE_MAX
assert CONTROL_REQUEST_SIZE_MAX > 2 * 2 * SECRET_SIZE_MAX, "old and new secret, hex-coded"
assert DISK_SIZE_MIN > DISK_RESERVE_MIN
assert HEDGE_SECONDS_MAX < DISK_DEADLINE_SECONDS < DISK_HANG_SECONDS < DISK_REBUILD_SECONDS
