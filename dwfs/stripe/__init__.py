"""Stripes: the write path, the read path, placement, space and reclaim of user data.

`StripeStore` implements `ports.DataStore` over the disks' shard stores. Its user's duties:

1. Call `admit(length)` before `append` and don't await between the two: the grant is not reserved.
2. Build every log record from `take_unlogged()` and `settled()`, or from `rotate()` and
   `await settle()`, without an await in between, and make the record durable.
3. Apply handed-out seals to the catalog, then call `committed` with them; not the other way round.
4. Call `drop` only for stripes whose end is durable. A reader that was sent to a stripe just before
   it was dropped gets EIO: it looks its extents up again before it believes that.
5. After a crash call `restore` for each stripe whose data was logged but not its seal, before the
   orphan sweep starts.
6. Call `forget(stripe)` when a stripe's placement has changed in the catalog.
"""

from dwfs.stripe.gather import Damage, DamageKind, DamageObserver, OpenedStripe, ShardGatherer
from dwfs.stripe.layout import StripeLayout, absent_shards, layout_of
from dwfs.stripe.placement import Candidate, choose_disks, water_level
from dwfs.stripe.reclaim import Cleaner, LiveRange, Pace, ReclaimStore, ReclaimTarget, pace_for
from dwfs.stripe.sealing import CipherFactory, StripeCipher, ThreadRunner
from dwfs.stripe.shard_header import ShardHeader, decode_header, encode_header
from dwfs.stripe.space import ReclaimSignal, SpaceAccount, usable_bytes
from dwfs.stripe.store import StripeCounters, StripeStore
from dwfs.stripe.sweep import orphans, sweep_disk

__all__ = [
    "Candidate",
    "CipherFactory",
    "Cleaner",
    "Damage",
    "DamageKind",
    "DamageObserver",
    "LiveRange",
    "OpenedStripe",
    "Pace",
    "ReclaimSignal",
    "ReclaimStore",
    "ReclaimTarget",
    "ShardGatherer",
    "ShardHeader",
    "SpaceAccount",
    "StripeCipher",
    "StripeCounters",
    "StripeLayout",
    "StripeStore",
    "ThreadRunner",
    "absent_shards",
    "choose_disks",
    "decode_header",
    "encode_header",
    "layout_of",
    "orphans",
    "pace_for",
    "sweep_disk",
    "usable_bytes",
    "water_level",
]
