"""What people and programs see of a command."""

from __future__ import annotations

import pytest

from dwfs.cli.output import ProgressLine, format_bytes, format_duration, render_table


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
