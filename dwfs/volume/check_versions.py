"""The part of the consistency check that is about snapshots: all versions, notes and bytes.

Derived from the versions alone: who sees which, hence which bytes are mapped by whom, hence what must
be noted and counted. Destroyed snapshots that are not settled yet are settled here on paper first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby, pairwise

from dwfs.types import NO_EPOCH, Epoch, Extent, StripeId
from dwfs.volume import filemap
from dwfs.volume import runs as node_runs
from dwfs.volume.records import Inode
from dwfs.volume.state import VolumeState
from dwfs.volume.store import (
    KIND_INODE,
    KIND_KEPT_VERSION,
    KIND_NODE,
    KIND_STRIPE,
    ONLY_VOLUME,
)
from dwfs.volume.versions import (
    CURRENT,
    SUFFIX_SIZE,
    VERSIONED_KINDS,
    Version,
    born_of,
    parse_note,
)

Kept = Counter[tuple[int, int, StripeId]]
# Where some epoch's bytes lie: (epoch of writing, stripe, stripe offset minus file offset).
Place = tuple[int, StripeId, int]
Ranges = list[tuple[int, int, Epoch]]  # (start, end, newest who sees it)


def check_versions(state: VolumeState) -> Iterator[str]:
    """Findings. The state has been flushed; nothing may change it meanwhile."""
    for snapshot in state.snapshots.by_name.values():
        if snapshot.epoch >= state.meta.epoch:
            yield f"snapshot {snapshot.name} is of epoch {snapshot.epoch}, which is not over"
    yield from _check_notes(state)
    live: Counter[StripeId] = Counter()
    kept: Kept = Counter()
    yield from _count_bytes(state, live, kept)
    yield from _check_kept(state, live, kept)
    yield from _check_totals(state)


def _groups(state: VolumeState, kind: bytes) -> Iterator[tuple[bytes, list[Version]]]:
    """Each logical key of a kind with its versions, newest first."""
    for logical, pairs in groupby(state.store.scan(kind), key=lambda pair: pair[0][:-SUFFIX_SIZE]):
        yield logical, [Version(born_of(key), key, sealed) for key, sealed in pairs]


def _spans(versions: list[Version]) -> Iterator[tuple[Version, Epoch]]:
    """Each version with the last epoch in which it was good."""
    until = CURRENT
    for version in versions:
        yield version, until
        until = Epoch(version.born - 1)


def _newest_seeing(state: VolumeState, version: Version, until: Epoch) -> Epoch:
    """CURRENT, the newest snapshot that sees the version, or NO_EPOCH."""
    if until == CURRENT:
        return CURRENT
    return max(
        (epoch for epoch in state.snapshots.epochs if version.born <= epoch <= until),
        default=NO_EPOCH,
    )


def _check_notes(state: VolumeState) -> Iterator[str]:
    notes: dict[tuple[bytes, Epoch], list[Epoch]] = {}
    for key, _ in state.store.scan(KIND_KEPT_VERSION + ONLY_VOLUME):
        seen_by, born, logical = parse_note(key)
        notes.setdefault((logical, born), []).append(seen_by)
    destroyed = {*state.meta.reaping, *state.meta.sweeping}
    for kind in VERSIONED_KINDS:
        for logical, versions in _groups(state, kind):
            if not versions[-1].sealed:
                yield f"key {logical.hex()}: a tombstone hides nothing"
            if versions[0].born > state.meta.epoch:
                yield f"key {logical.hex()}: a version of epoch {versions[0].born} is too new"
            for version, until in _spans(versions):
                if until == CURRENT:
                    continue
                found = notes.pop((logical, version.born), [])
                if len(found) != 1:
                    yield f"key {logical.hex()}: version {version.born} has {len(found)} notes"
                    continue
                newest = _newest_seeing(state, version, until)
                if found[0] != newest and not (found[0] in destroyed and found[0] > newest):
                    yield (
                        f"key {logical.hex()}: version {version.born} is noted for epoch "
                        f"{found[0]}, should be for {newest}"
                    )
    for logical, born in notes:
        yield f"key {logical.hex()}: version {born} is noted, but there is none to be kept"


def _count_bytes(state: VolumeState, live: Counter[StripeId], kept: Kept) -> Iterator[str]:
    """What is mapped and by whom, into `live` and `kept`."""
    places: dict[bytes, tuple[int, int]] = {}
    inline: dict[int, dict[Place, Ranges]] = {}
    for logical, versions in _groups(state, KIND_INODE):
        number = int.from_bytes(logical[1:9], "big")
        runs: node_runs.Runs = []
        for version, until in _spans(versions):
            if not version.sealed:
                continue
            inode = state.inodes.decode(version.key, version.sealed)
            if inode.extent_runs != runs:
                runs = inode.extent_runs
                for index in node_runs.within(runs, 0, filemap.LAST_NODE):
                    places.setdefault(state.node_key(number, index), (number, index))
            if inode.inline and (seen_by := _newest_seeing(state, version, until)):
                _collect(inline.setdefault(number, {}), inode.inline, seen_by)
    for logical, versions in _groups(state, KIND_NODE):
        nodes = [
            (state.nodes.decode(version.key, version.sealed), seen_by)
            for version, until in _spans(versions)
            if version.sealed and (seen_by := _newest_seeing(state, version, until))
        ]
        place = places.get(logical)
        if nodes and place is None:
            yield f"extent node {logical.hex()} belongs to no file"
        # A first node may have been in the inode at times: count both together.
        ranges = inline.pop(place[0], {}) if place is not None and place[1] == 0 else {}
        for node, seen_by in nodes:
            _collect(ranges, node, seen_by)
        _settle_on_paper(ranges, live, kept)
    for ranges in inline.values():
        _settle_on_paper(ranges, live, kept)


def _collect(ranges: dict[Place, Ranges], extents: list[Extent], seen_by: Epoch) -> None:
    for extent in extents:
        place = (extent.epoch, extent.stripe, extent.stripe_offset - extent.offset)
        ranges.setdefault(place, []).append((extent.offset, extent.end, seen_by))


def _settle_on_paper(ranges: dict[Place, Ranges], live: Counter[StripeId], kept: Kept) -> None:
    """Count each byte once, for the newest who maps it."""
    for (written, stripe, _), found in ranges.items():
        edges = sorted({edge for start, end, _ in found for edge in (start, end)})
        for low, high in pairwise(edges):
            seen_by = max(
                (newest for start, end, newest in found if start <= low and high <= end),
                default=NO_EPOCH,
            )
            if seen_by != NO_EPOCH:
                live[stripe] += high - low
                if seen_by != CURRENT:
                    kept[seen_by, written, stripe] += high - low


def _check_kept(state: VolumeState, live: Counter[StripeId], kept: Kept) -> Iterator[str]:
    counted: Kept = Counter()
    for record in state.kept.all():
        counted[record.seen_by, record.written, record.stripe] = record.length
    if counted.total() != state.meta.kept_bytes:
        yield f"volume counts {state.meta.kept_bytes} kept bytes, has {counted.total()}"
    totals: Counter[tuple[int, int]] = Counter()
    for (seen_by, written, _), length in counted.items():
        totals[seen_by, written] += length
    for seen_by, written, length in state.kept.all_totals():
        if totals.pop((seen_by, written), 0) != length:
            yield f"epoch {seen_by} does not keep {length} bytes of epoch {written}"
    for seen_by, written in totals:
        yield f"what epoch {seen_by} keeps of epoch {written} has no total"
    released: Counter[StripeId] = Counter()
    for doomed in state.meta.reaping:
        before = state.snapshots.before(doomed)
        for key in [key for key in counted if key[0] == doomed]:
            length = counted.pop(key)
            if before == NO_EPOCH or key[1] > before:
                released[key[2]] += length
            else:
                counted[before, key[1], key[2]] += length
    for key in sorted(counted.keys() | kept.keys()):
        if counted[key] != kept[key]:
            yield (
                f"stripe {key[2].hex()}: epoch {key[0]} is said to keep {counted[key]} bytes of "
                f"epoch {key[1]}, but keeps {kept[key]}"
            )
    seen: set[StripeId] = set()
    for stored, sealed in state.store.scan(KIND_STRIPE):
        stripe = StripeId(stored[1:])
        seen.add(stripe)
        count = state.stripes.table.decode(stored, sealed).live_bytes - released[stripe]
        if count != live[stripe]:
            yield (
                f"stripe {stripe.hex()} counts {count} live bytes, files refer to {live[stripe]}"
            )
    for stripe in live.keys() - seen:
        yield f"stripe {stripe.hex()} is referred to, but unknown"


def _check_totals(state: VolumeState) -> Iterator[str]:
    inodes: Counter[Epoch] = Counter()
    allocated: Counter[Epoch] = Counter()
    epochs = state.snapshots.epochs
    for _, versions in _groups(state, KIND_INODE):
        for version, until in _spans(versions):
            seeing = [epoch for epoch in epochs if version.born <= epoch <= until]
            if version.sealed and seeing:
                inode: Inode = state.inodes.decode(version.key, version.sealed)
                for epoch in seeing:
                    inodes[epoch] += 1
                    allocated[epoch] += inode.allocated_bytes
    for snapshot in state.snapshots.by_name.values():
        found = (inodes[snapshot.epoch], allocated[snapshot.epoch])
        if found != (snapshot.inode_count, snapshot.allocated_bytes):
            yield (
                f"snapshot {snapshot.name} counts {snapshot.inode_count} inodes and "
                f"{snapshot.allocated_bytes} bytes, has {found[0]} and {found[1]}"
            )
