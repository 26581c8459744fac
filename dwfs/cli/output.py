"""What commands print: units, tables, JSON, progress.

Results go to stdout; everything about the command itself (errors, warnings, progress) to stderr,
so that `--json` output can be piped. Progress is drawn only on a terminal; elsewhere a plain line
now and then.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from dwfs.errors import UsageError

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE: Final = re.compile(
    r"(?P<number>\d+(\.\d+)?)\s*((?P<letter>[KMGTPE])(?P<suffix>i?B)?|B)?", re.IGNORECASE
)
_REDRAW_SECONDS: Final = 0.1
_PLAIN_SECONDS: Final = 10.0
_RATE_SECONDS_MIN: Final = 0.2  # a rate over less says nothing
_BAR_WIDTH: Final = 24


def print_json(value: object) -> None:
    """One indented JSON document on stdout."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def warn(text: str) -> None:
    """One line about something that the operator should know, but that stops nothing."""
    print(f"dwfs: warning: {text}", file=sys.stderr)


def format_bytes(count: int | None) -> str:
    """Bytes in the unit that keeps the number below 1024; "-" for None."""
    if count is None:
        return "-"
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def parse_bytes(text: str) -> int:
    """The inverse, for arguments: "4T", "500 GB", "8GiB", "1048576". Raises UsageError.

    K, M, G, T, P alone and with "iB" are powers of 1024, with "B" powers of 1000, as on disks' labels.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size: write for example 4T, 500GB or 8GiB")
    letter, suffix = (match["letter"] or " ").upper(), (match["suffix"] or "").lower()
    step = 1000 if suffix == "b" else 1024
    return int(float(match["number"]) * step ** " KMGTPE".index(letter))


def format_count(count: int, singular: str, plural: str = "") -> str:
    """ "1 file", "2 files", "2 directories"."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def format_time(moment_ns: int) -> str:
    """A moment as people read it, in UTC as everywhere in our output."""
    return datetime.fromtimestamp(moment_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "3 min 20 s", "2 h 5 min"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int]) -> str:
    """Aligned columns, two spaces apart; the columns in `numeric` are aligned right."""
    lines = [header, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    rendered = []
    for line in lines:
        cells = [
            cell.rjust(width) if index in numeric else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        rendered.append("  ".join(cells).rstrip())
    return "\n".join(rendered)


class ProgressLine:
    """Progress of one long activity, with a bar, rate and time left where a total is known.

    An activity has phases, told apart by `what`; each has a count and a rate of its own. On a
    terminal one line is redrawn; elsewhere a line is printed now and then.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0 if self._terminal else self._started
        self._width = 0
        self._phase = ""
        self._first = 0  # the count at which the phase was first seen: a job may have run for long

    def update(
        self,
        done: int,
        total: int | None,
        unit: str = "",
        *,
        what: str = "",
        rate: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Tell how far it is; drawn only when due. `rate` and `seconds_left`: where known better."""
        now = time.monotonic()
        if what != self._phase:
            self._phase, self._started, self._first = what, now, done
        due = _REDRAW_SECONDS if self._terminal else _PLAIN_SECONDS
        if self._quiet or now - self._drawn < due:
            return
        self._drawn = now
        if rate is None:
            elapsed = now - self._started
            rate = (done - self._first) / elapsed if elapsed > _RATE_SECONDS_MIN else 0.0
        if seconds_left is None and total and rate > 0:
            seconds_left = max(0, total - done) / rate
        text = self._render(done, total, unit, rate, seconds_left)
        if self._terminal:
            text = text[: max(20, shutil.get_terminal_size().columns - 1)]
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def show(self, event: Mapping[str, object]) -> None:
        """Draw a progress event as the owner of a pool sends it over the control socket."""
        done, total = event.get("done"), event.get("total")
        if not isinstance(done, int):
            return
        what, unit = str(event.get("what") or ""), str(event.get("unit") or "")
        rate, left = event.get("bytes_per_second"), event.get("seconds_left")
        self.update(
            done,
            total if isinstance(total, int) else None,
            unit,
            what=what,
            rate=float(rate) if isinstance(rate, int | float) else None,
            seconds_left=float(left) if isinstance(left, int | float) else None,
        )

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def _render(
        self, done: int, total: int | None, unit: str, rate: float, seconds_left: float | None
    ) -> str:
        def amount(count: float) -> str:
            return format_bytes(int(count)) if unit == "bytes" else f"{count:.0f}"

        name = "" if unit == "bytes" or not unit else f" {unit}"
        head = self._label if not self._phase else f"{self._label}: {self._phase}"
        if not done and not total:
            return f"{head} …"
        pieces = [f"{amount(done)} of {amount(total)}{name}" if total else f"{amount(done)}{name}"]
        if rate > 0:
            pieces.append(f"{amount(rate)}/s")
        if total and seconds_left is not None:
            pieces.append(f"{format_duration(seconds_left)} left")
        bar = ""
        if total:
            share = min(1.0, done / total)
            bar = f" {int(100 * share)} %,"
            if self._terminal:
                filled = round(share * _BAR_WIDTH)
                bar = f" {int(100 * share):3d} % [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}]"
        return f"{head}:{bar} {', '.join(pieces)}"
