"""What commands print: units, tables, JSON, progress.

Results go to stdout; everything about the command itself (errors, warnings, progress) to stderr,
so that `--json` output can be piped. Progress is drawn only on a terminal; elsewhere a plain line
now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_REDRAW_SECONDS: Final = 0.1
_PLAIN_SECONDS: Final = 10.0


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
    """Progress of one long activity, with rate and time left where a total is known."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0 if self._terminal else self._started
        self._width = 0

    def update(self, done: int, total: int | None, unit: str) -> None:
        """Tell how far it is; drawn only when due."""
        now = time.monotonic()
        due = _REDRAW_SECONDS if self._terminal else _PLAIN_SECONDS
        if self._quiet or now - self._drawn < due:
            return
        self._drawn = now
        elapsed = max(now - self._started, 1e-3)
        rate = done / elapsed
        text = f"{self._label}: {done} {unit}, {rate:.0f}/s"
        if total:
            left = format_duration((total - done) / rate) if rate > 0 else "?"
            text = f"{self._label}: {done} of {total} {unit}, {rate:.0f}/s, {left} left"
        if self._terminal:
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0
