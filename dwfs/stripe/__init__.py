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
6. Claim a stripe with `begin_move` before putting a shard of it anywhere, call `forget` when its
   placement has changed in the catalog, and `end_move` at the end.
7. Have one `ShardMover` for each pool and volume key, shared by `Repairer` and `Balancer`; pass it a
   `MoveTarget` whose `place` returns only when the moves are durable, and run `Repairer.run` as long as
   the pool is open. Tell it what readers find (`report`), and call `walk_soon` whenever a disk has
   changed its role or stripes were written degraded. A `DiskScrub` waits for its answers.
"""

from dwfs.stripe.balance import BalanceProgress, Balancer, BalanceState, DiskFill, fair_shares
from dwfs.stripe.gather import ShardGatherer
from dwfs.stripe.layout import StripeLayout, absent_shards, layout_of
from dwfs.stripe.mover import ShardMover
from dwfs.stripe.moving import MendReport, MendRequest, MoveTarget, MovingStripes, Outcome
from dwfs.stripe.opened import Damage, DamageObserver, OpenedStripe
from dwfs.stripe.pacing import Pacer, RateMeter
from dwfs.stripe.placement import Candidate, choose_disks, water_level
from dwfs.stripe.planning import DiskRoom, DiskShare, Forecast, forecast, recommend, room_of
from dwfs.stripe.reclaim import Cleaner, LiveRange, Pace, ReclaimStore, ReclaimTarget, pace_for
from dwfs.stripe.redundancy import ShardState, StripeHealth, assess
from dwfs.stripe.repair import OutcomeObserver, Repairer, RepairProgress
from dwfs.stripe.scrub import DiskScrub, ScrubState
from dwfs.stripe.sealing import CipherFactory, StripeCipher, ThreadRunner
from dwfs.stripe.shard_header import ShardHeader, decode_header, encode_header
from dwfs.stripe.space import ReclaimSignal, SpaceAccount, usable_bytes
from dwfs.stripe.store import StripeCounters, StripeStore
from dwfs.stripe.sweep import orphans, sweep_disk, sweep_keys

__all__ = [
    "BalanceProgress",
    "BalanceState",
    "Balancer",
    "Candidate",
    "CipherFactory",
    "Cleaner",
    "Damage",
    "DamageObserver",
    "DiskFill",
    "DiskRoom",
    "DiskScrub",
    "DiskShare",
    "Forecast",
    "LiveRange",
    "MendReport",
    "MendRequest",
    "MoveTarget",
    "MovingStripes",
    "OpenedStripe",
    "Outcome",
    "OutcomeObserver",
    "Pace",
    "Pacer",
    "RateMeter",
    "ReclaimSignal",
    "ReclaimStore",
    "ReclaimTarget",
    "RepairProgress",
    "Repairer",
    "ScrubState",
    "ShardGatherer",
    "ShardHeader",
    "ShardMover",
    "ShardState",
    "SpaceAccount",
    "StripeCipher",
    "StripeCounters",
    "StripeHealth",
    "StripeLayout",
    "StripeStore",
    "ThreadRunner",
    "absent_shards",
    "assess",
    "choose_disks",
    "decode_header",
    "encode_header",
    "fair_shares",
    "forecast",
    "layout_of",
    "orphans",
    "pace_for",
    "recommend",
    "room_of",
    "sweep_disk",
    "sweep_keys",
    "usable_bytes",
    "water_level",
]
