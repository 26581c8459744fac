"""A real tree of thousands of files: in, compared, mounted again, and with two disks gone."""

from __future__ import annotations

import itertools
import os
import random
import sysconfig
from pathlib import Path

from tests.integration.pools import Pool, copy_tree, tree

LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_a_real_tree_survives_everything(mounted: Pool, long: bool, seed: int) -> None:
    target = mounted.mountpoint / "library"
    assert copy_tree(LIBRARY, target) > 500
    original = mounted.home / "original"
    copy_tree(LIBRARY, original)
    expected = tree(original)
    big = mounted.mountpoint / "big"
    pattern = os.urandom(1 << 20)
    size_mib = 2048 if long else 192
    with big.open("wb", buffering=0) as file:
        for number in range(size_mib):
            file.write(number.to_bytes(8, "big") + pattern[8:])

    def compare() -> None:
        assert tree(target) == expected
        with big.open("rb") as file:
            for number in range(size_mib):
                assert file.read(1 << 20) == number.to_bytes(8, "big") + pattern[8:]
            assert file.read() == b""

    compare()
    mounted.remount()
    compare()
    mounted.umount()
    pairs = list(itertools.combinations(range(6), 2))
    chosen = pairs if long else random.Random(seed).sample(pairs, 2)
    for pair in chosen:
        hidden = [mounted.disks[number] for number in pair]
        for disk in hidden:
            disk.rename(disk.with_suffix(".hidden"))
        mounted.mount()
        compare()
        assert mounted.status()["health"] == "at-risk"
        mounted.umount()
        for disk in hidden:
            disk.with_suffix(".hidden").rename(disk)
