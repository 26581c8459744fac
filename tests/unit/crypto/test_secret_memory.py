"""What the kernel says about secret memory, and that nothing of it is left behind."""

from __future__ import annotations

import ctypes
import gc
import pickle
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dwfs.crypto import SecretBytes, derive


def vm_flags(address: int) -> set[str]:
    """The kernel's flags of the mapping that starts at `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("no such mapping")


def test_memory_is_locked_and_left_out_of_dumps() -> None:
    with SecretBytes.random(32) as secret:
        flags = vm_flags(secret.address)
        assert "dd" in flags
        assert secret.locked == ("lo" in flags)
        allowed, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        assert secret.locked or 0 <= allowed < 2**20


def test_random_secrets_differ() -> None:
    with SecretBytes.random(1000) as one, SecretBytes.random(1000) as other:
        assert not one.equals(other)
        assert one.equals(one)
        with one.view() as view:
            assert len(set(view)) > 100


def test_wipe_zeroes_before_unmapping() -> None:
    secret = SecretBytes.copy_of(b"x" * 32)
    address = secret.address
    keeps_it_mapped = secret.view()
    assert ctypes.string_at(address, 32) == b"x" * 32
    secret.wipe()
    assert ctypes.string_at(address, 32) == bytes(32)
    assert bytes(keeps_it_mapped) == bytes(32)
    secret.wipe()


def test_a_dropped_secret_is_wiped() -> None:
    secret = SecretBytes.copy_of(b"y" * 32)
    address, view = secret.address, secret.view()
    del secret
    gc.collect()
    assert ctypes.string_at(address, 32) == bytes(32)
    view.release()


def test_a_wiped_secret_is_unusable() -> None:
    with SecretBytes(32) as secret:
        pass
    assert secret.wiped
    with pytest.raises(ValueError, match="wiped"):
        secret.view()
    with pytest.raises(ValueError, match="wiped"):
        derive(secret, b"", b"info")


def test_a_secret_is_neither_shown_nor_pickled() -> None:
    with SecretBytes.copy_of(b"hunter2-hunter2") as secret:
        assert repr(secret) == "<SecretBytes of 15 bytes>"
        assert "hunter2" not in str(secret)
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(secret)
    with pytest.raises(ValueError, match="at least one byte"):
        SecretBytes(0)


# For a process of its own: counts the places in all of its memory that hold the inverse of a needle.
SEARCH = """
import os

INVERT = bytes(byte ^ 0xFF for byte in range(256))

CHUNK, OVERLAP = 1 << 20, 31
window = bytearray(CHUNK)
ZEROS = bytes(CHUNK)

def occurrences(inverted):
    # Through one window that is zeroed around each use: a plain read would leave copies of
    # what it read in the heap, for the next search to find.
    count = 0
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps.read().splitlines() if "[v" not in line]
    for fields in ranges:
        if "r" not in fields[1]:
            continue
        start, end = (int(part, 16) for part in fields[0].split("-"))
        while end - start > OVERLAP:
            window[:] = ZEROS
            length = os.preadv(memory, [memoryview(window)[: end - start]], start)
            count += window.translate(INVERT).count(inverted)
            start += length - OVERLAP if length == CHUNK else length
    window[:] = ZEROS
    os.close(memory)
    return count
"""


def test_no_key_is_left_in_the_process_after_wiping() -> None:
    """Search all memory for the root key and for a one-use key, from a process of its own.

    The needles are handed over inverted, so that the search does not find itself.
    """
    run_in_new_process(
        SEARCH,
        """
        import gc, hmac, sys
        from dwfs.crypto import RootKeys, SecretBytes
        from dwfs.types import PoolId, StripeId, VolumeId

        def inverted_copy(view):
            return bytes(byte ^ 0xFF for byte in view)

        root = SecretBytes.random(32)
        with root.view() as view:
            inverted_root = inverted_copy(view)
        keys = RootKeys(root, PoolId(bytes(16)))
        volume = keys.volume(VolumeId(bytes(16)), 1)
        inverted_value_key = inverted_copy(volume._views[1])
        caught = {}

        # Take the one-use key where it appears for a moment: in the scratch, under the lock.
        import dwfs.crypto.derivation as derivation
        real = derivation.AESGCM
        def spy(scratch):
            caught["key"] = inverted_copy(scratch)
            return real(scratch)
        derivation.AESGCM = spy
        cipher = volume.stripe_cipher(StripeId(bytes(16)), bytes(24))
        out = memoryview(bytearray(116))
        cipher.seal_sector(0, b"z" * 100, out)
        volume.log.seal(b"record", b"")
        volume.values.seal(b"value", b"")
        record_key = caught["key"]
        assert occurrences(inverted_root) == 1, "the root key is in one place"
        cipher = volume.stripe_cipher(StripeId(bytes(16)), bytes(24))
        assert occurrences(caught["key"]) >= 1, "OpenSSL's key schedule, and nothing of ours"
        keys.wipe()
        del cipher, out
        gc.collect()
        for inverted in (inverted_root, inverted_value_key, record_key, caught["key"]):
            assert occurrences(inverted) == 0
        """,
    )


def test_hardening_forbids_dumps() -> None:
    run_in_new_process(
        """
        import ctypes, resource
        from dwfs.crypto import harden_process

        harden_process()
        assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        """
    )


def run_in_new_process(*scripts: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "".join(textwrap.dedent(script) for script in scripts)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert result.returncode == 0, result.stderr
