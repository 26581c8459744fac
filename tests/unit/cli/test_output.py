"""What people and programs see of a command."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dwfs.cli.output import (
    ProgressLine,
    format_bytes,
    format_count,
    format_duration,
    parse_bytes,
    render_table,
)
from dwfs.errors import UsageError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 70, "3072.0 EiB"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_table_is_aligned() -> None:
    text = render_table(["disk", "used"], [["/a", "1 B"], ["/longer", "10 B"]], {1})
    assert text.splitlines() == ["disk     used", "/a        1 B", "/longer  10 B"]


def test_progress_is_silent_off_a_terminal_at_first(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("checking")
    line.update(1, 10, "stripes")
    line.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("100B", 100),
        ("4T", 4 << 40),
        ("4tib", 4 << 40),
        ("1.5 GiB", 3 << 29),
        ("500GB", 500 * 10**9),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "T", "4X", "-1G", "1e3", "4iB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_bytes(text)


def test_counts() -> None:
    assert format_count(1, "disk") == "1 disk"
    assert format_count(0, "disk") == "0 disks"
    assert format_count(2, "directory", "directories") == "2 directories"


class Terminal:
    """Stands for stderr on a terminal; keeps what is drawn."""

    def __init__(self) -> None:
        self.drawn = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.drawn += text

    def flush(self) -> None:
        pass


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    # Not sys.stderr itself: pytest puts its own there between the fixture and the test.
    monkeypatch.setattr("dwfs.cli.output.sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setenv("COLUMNS", "120")
    return terminal


def test_progress_on_a_terminal_has_a_bar_rate_and_time_left(terminal: Terminal) -> None:
    line = ProgressLine("remove tank")
    line.show(
        {
            "what": "moving",
            "done": 3 << 30,
            "total": 4 << 30,
            "unit": "bytes",
            "bytes_per_second": float(64 << 20),
            "seconds_left": 16.0,
        }
    )
    assert (
        terminal.drawn
        == "\rremove tank: moving:  75 % [##################......] 3.0 GiB of 4.0 GiB, "
        "64.0 MiB/s, 16 s left"
    )
    line.close()
    assert terminal.drawn.endswith(" \r")


def test_progress_without_a_total(terminal: Terminal) -> None:
    line = ProgressLine("checking tank")
    line.show({"what": "stripes", "done": 512, "total": None})
    assert terminal.drawn == "\rchecking tank: stripes: 512"


def test_an_event_without_a_count_is_no_progress(terminal: Terminal) -> None:
    ProgressLine("x").show({"what": "thinking"})
    assert terminal.drawn == ""


def test_progress_never_wraps(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    ProgressLine("x" * 100).update(1, 2, "bytes")
    assert len(terminal.drawn) <= 40


def test_quiet_means_quiet(terminal: Terminal) -> None:
    line = ProgressLine("x", quiet=True)
    line.update(1, 2)
    line.close()
    assert terminal.drawn == ""
