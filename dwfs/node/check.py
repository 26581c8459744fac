"""`dwfs check`: does everything that should be there exist, and does it fit together?

From the top: the header copies, the log's copies, the volume's state (a second, independent
derivation of everything that it keeps), each stripe's shards. A stripe is judged by what the disks'
indexes say, or, with `read`, by reading every shard and comparing its checksum and salt.

Findings are sentences for people. What is *damage*: data that can't be read any more, a state that
contradicts itself. What is only a *shortage*: copies and shards that redundancy can replace. Both are
reported; both make the command's exit code 10, because somebody should act.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
import trio

from dwfs.errors import DwfsError, MediumError
from dwfs.node.assembly import Pool
from dwfs.node.reclaim_target import live_ranges
from dwfs.node.survey import survey_disks
from dwfs.stripe import decode_header, layout_of
from dwfs.types import ROOT_INODE, InodeNumber, ShardKey, StripeId, StripeSeal
from dwfs.volume import Volume

_BATCH: Final = 256
_FINDINGS_MAX: Final = 10_000  # more help nobody; their number is reported
_PATH_DEPTH_MAX: Final = 4096

Progress = Callable[[Mapping[str, object]], Awaitable[None]]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it should be."""

    area: str  # "header", "disk", "log", "state", "stripe", "file"
    severity: str  # "damage" or "shortage"
    text: str


class CheckReport(msgspec.Struct):
    """What `dwfs check --json` prints."""

    pool: str
    read: bool  # every shard was read, not only looked up
    findings: list[Finding] = []
    findings_left_out: int = 0
    damaged_files: list[str] = []  # paths; "inode N" where no path leads to it
    stripes: int = 0
    stripes_lost: int = 0
    stripes_short: int = 0  # readable, but with fewer shards than they should have
    shards_missing: int = 0
    shards_damaged: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing at all was found."""
        return not self.findings

    def add(self, area: str, severity: str, text: str) -> None:
        """Note a finding."""
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(Finding(area, severity, text))
        else:
            self.findings_left_out += 1


async def check_pool(pool: Pool, *, read: bool, progress: Progress) -> CheckReport:
    """Check an open pool. Raises PosixError if it can't even be brought to rest."""
    report = CheckReport(pool=pool.name, read=read)
    await _check_disks(pool, report)
    _check_log(pool, report)
    if not pool.read_only:
        await pool.volume.destage()
    await progress({"what": "state", "done": 0, "total": None})
    # No await within: nothing may change the state while it is compared with itself.
    for text in pool.volume.check():
        report.add("state", "damage", text)
    lost = await _check_stripes(pool, report, progress)
    _name_files(pool.volume, lost, report)
    return report


async def _check_disks(pool: Pool, report: CheckReport) -> None:
    for disk in pool.foundation.disks.all():
        if disk.state != "online":
            report.add("disk", "shortage", f"{disk.directory} is {disk.state}: {disk.reason}")
    try:
        survey = await trio.to_thread.run_sync(survey_disks, pool.config)
    except DwfsError as error:
        report.add("header", "damage", str(error))
        return
    for stored in survey.stale:
        what = "is damaged (an older copy is used)" if stored.fallback else "is out of date"
        report.add("header", "shortage", f"the pool header in {stored.directory} {what}")


def _check_log(pool: Pool, report: CheckReport) -> None:
    if pool.log is None:
        report.add("log", "shortage", "the pool is open read-only: too many disks are gone")
        return
    status = pool.log.status()
    if status.copies < status.copies_wanted:
        report.add("log", "shortage", f"{status.copies} of {status.copies_wanted} copies")
    if status.files_short:
        report.add("log", "shortage", f"{status.files_short} older files lack copies")


async def _check_stripes(pool: Pool, report: CheckReport, progress: Progress) -> list[StripeId]:
    """Look at every stripe's shards; returns the stripes that can't be read."""
    lost: list[StripeId] = []
    after: StripeId | None = None
    while seals := pool.volume.catalog.seals(after, _BATCH):
        after = seals[-1].stripe
        for seal in seals:
            await _check_stripe(pool, seal, report, lost)
        report.stripes += len(seals)
        await progress({"what": "stripes", "done": report.stripes, "total": None})
    return lost


async def _check_stripe(
    pool: Pool, seal: StripeSeal, report: CheckReport, lost: list[StripeId]
) -> None:
    geometry = seal.geometry
    wanted = layout_of(seal).stored_shards()
    sound = geometry.total - len(wanted)  # empty shards are never stored and never missing
    for shard in wanted:
        problem = await _shard_problem(pool, seal, shard, read=report.read)
        if problem is None:
            sound += 1
        elif problem == "missing":
            report.shards_missing += 1
        else:
            report.shards_damaged += 1
            disk = seal.placement[shard].hex()[:8]
            report.add(
                "stripe",
                "shortage",
                f"shard {shard} of stripe {seal.stripe.hex()} on disk {disk}: {problem}",
            )
    if sound == geometry.total:
        return
    if sound >= geometry.data:
        report.stripes_short += 1
        if report.stripes_short == 1:
            report.add("stripe", "shortage", "some stripes lack shards; nothing is lost")
        return
    # It may have been dropped while we looked.
    if pool.volume.catalog.seal_of(seal.stripe) is None:
        return
    report.stripes_lost += 1
    lost.append(seal.stripe)
    report.add(
        "stripe",
        "damage",
        f"stripe {seal.stripe.hex()} has {sound} of the {geometry.data} shards that it needs",
    )


async def _shard_problem(pool: Pool, seal: StripeSeal, shard: int, *, read: bool) -> str | None:
    """None, "missing", or what is wrong with the shard."""
    disk = seal.placement[shard]
    store = pool.foundation.disks.get(disk) if disk else None
    key = ShardKey(seal.stripe, shard)
    if store is None or not store.has(key):
        return "missing"
    if not read:
        return None
    try:
        header, _ = await store.read_verified(key)
        decoded = decode_header(header)
        if decoded is None or decoded.salt != seal.salt:
            return "it belongs to another sealing of the stripe"
    except MediumError as error:
        return str(error)
    return None


def _name_files(volume: Volume, lost: list[StripeId], report: CheckReport) -> None:
    """Add the paths of the files that need a lost stripe."""
    inodes: dict[InodeNumber, None] = {}
    for stripe in lost:
        for live in live_ranges(volume, stripe):
            inodes[InodeNumber(live.inode)] = None
    paths = find_paths(volume, set(inodes))
    for number in inodes:
        names = paths.get(number, [f"inode {number}"])
        report.damaged_files.extend(names)
        report.add("file", "damage", f"{names[0]} has lost data")


def find_paths(volume: Volume, wanted: set[InodeNumber]) -> dict[InodeNumber, list[str]]:
    """All paths of some inodes, from the volume's root, by walking the whole tree."""
    found: dict[InodeNumber, list[str]] = {}
    if not wanted:
        return found
    pending: list[tuple[InodeNumber, str]] = [(ROOT_INODE, "")]
    while pending:
        directory, path = pending.pop()
        cookie = 0
        while entries := volume.read_directory(directory, cookie, _BATCH):
            cookie = entries[-1].cookie
            for entry in entries:
                name = f"{path}/{_printable(entry.name)}"
                if entry.inode in wanted:
                    found.setdefault(entry.inode, []).append(name)
                if entry.type == 4 and name.count("/") < _PATH_DEPTH_MAX:  # DT_DIR
                    pending.append((entry.inode, name))
    return found


def _printable(name: bytes) -> str:
    """A name of any bytes as text that can be printed, and put into JSON."""
    return name.decode("utf-8", errors="backslashreplace")
