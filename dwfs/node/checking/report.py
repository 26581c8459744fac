"""What a check found: sentences for people, counts for scripts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

import msgspec

FINDINGS_MAX: Final = 10_000  # more help nobody; their number is reported

Progress = Callable[[Mapping[str, object]], Awaitable[None]]
Area = Literal["header", "disk", "segment", "log", "state", "stripe", "file", "space"]
# A leftover of something interrupted costs space at most; the next scrub clears it away.
Severity = Literal["damage", "shortage", "leftover"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it should be."""

    area: Area
    severity: Severity
    text: str


class CheckReport(msgspec.Struct):
    """What `dwfs check --json` prints."""

    pool: str
    read: bool  # every shard was read, not only looked up
    findings: list[Finding] = []
    findings_left_out: int = 0
    damaged_files: list[str] = []  # paths; "inode N" where no path leads to it
    stripes: int = 0
    stripes_lost: int = 0  # that can't be read now
    stripes_short: int = 0  # readable, but with fewer shards than they should have
    shards_missing: int = 0
    shards_damaged: int = 0
    orphans: int = 0  # shards on the disks that no stripe claims
    read_bytes: int = 0  # from the disks, with `read`
    repaired: list[str] = []  # what `repair` did, in sentences
    needs_reopen: bool = False  # only a rebuild of the state directory can mend the rest

    @property
    def clean(self) -> bool:
        """Whether nothing at all is wrong any more."""
        return not self.findings and not self.findings_left_out

    @property
    def sound(self) -> bool:
        """Whether all data and all redundancy is there: nothing was found but leftovers."""
        return not self.findings_left_out and all(
            finding.severity == "leftover" for finding in self.findings
        )

    def add(self, area: Area, severity: Severity, text: str) -> None:
        """Note a finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(area, severity, text))
        else:
            self.findings_left_out += 1
