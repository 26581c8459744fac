"""What mount(8) and systemd say to a helper, in our words."""

from __future__ import annotations

import pytest

from dwfs.cli.mount_helper import translate
from dwfs.errors import UsageError


@pytest.mark.parametrize(
    ("given", "words", "options", "pretend"),
    [
        (["pool", "/m"], ["pool", "/m"], [], False),
        (["pool", "/m", "-o", "rw,noatime"], ["pool", "/m"], ["rw,noatime"], False),
        (["pool", "/m", "-orw"], ["pool", "/m"], ["rw"], False),
        (["-sv", "pool", "/m", "-n", "-o", "ro"], ["pool", "/m"], ["ro"], False),
        (["pool", "/m", "-f"], ["pool", "/m"], [], True),
        (
            ["pool", "/m", "-t", "fuse.dwfs", "-o", "a", "-o", "b"],
            ["pool", "/m"],
            ["a", "b"],
            False,
        ),
        (["pool", "/m", "-r"], ["pool", "/m"], ["ro"], False),
    ],
)
def test_translate(given: list[str], words: list[str], options: list[str], pretend: bool) -> None:
    assert translate(given) == (words, options, pretend)


@pytest.mark.parametrize(
    "given", [[], ["pool"], ["a", "b", "c"], ["a", "b", "-o"], ["a", "b", "-q"]]
)
def test_nonsense_is_refused(given: list[str]) -> None:
    with pytest.raises(UsageError):
        translate(given)
