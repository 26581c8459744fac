"""Stripe, value and record ciphers: what opens, and all that must not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dwfs.crypto import RootKeys, SecretBytes, VolumeKeys
from dwfs.errors import AuthenticationError
from dwfs.limits import SEALED_SECTOR_SIZE, SECTOR_SIZE, STRIPE_SECTORS_MAX
from dwfs.types import PoolId, StripeId, VolumeId

POOL = PoolId(b"P" * 16)
VOLUME = VolumeId(b"V" * 16)
STRIPE = StripeId(b"S" * 16)
SALT = b"s" * 24


def make_root(pool: PoolId = POOL) -> RootKeys:
    return RootKeys(SecretBytes.copy_of(bytes(range(32))), pool)


@pytest.fixture
def keys() -> Iterator[VolumeKeys]:
    with make_root() as root:
        yield root.volume(VOLUME, 1)


def seal(keys: VolumeKeys, number: int, plaintext: bytes) -> bytes:
    out = bytearray(len(plaintext) + 16)
    assert keys.stripe_cipher(STRIPE, SALT).seal_sector(number, plaintext, memoryview(out)) == len(
        out
    )
    return bytes(out)


@pytest.mark.parametrize("length", [1, 15, 16, SECTOR_SIZE - 1, SECTOR_SIZE])
@pytest.mark.parametrize("number", [0, 7, STRIPE_SECTORS_MAX - 1])
def test_sectors_round_trip(keys: VolumeKeys, length: int, number: int) -> None:
    plaintext = bytes(index % 251 for index in range(length))
    sealed = seal(keys, number, plaintext)
    cipher = keys.stripe_cipher(STRIPE, SALT)
    assert cipher.open_sector(number, sealed) == plaintext
    out = bytearray(SECTOR_SIZE)
    assert cipher.open_sector_into(number, sealed, memoryview(out)) == length
    assert out[:length] == plaintext


def test_a_sector_may_be_sealed_into_a_larger_buffer(keys: VolumeKeys) -> None:
    stripe = bytearray(3 * SEALED_SECTOR_SIZE)
    cipher = keys.stripe_cipher(STRIPE, SALT)
    cipher.seal_sector(1, bytes(SECTOR_SIZE), memoryview(stripe)[SEALED_SECTOR_SIZE:])
    assert stripe[:SEALED_SECTOR_SIZE] == bytes(SEALED_SECTOR_SIZE)
    assert stripe[2 * SEALED_SECTOR_SIZE :] == bytes(SEALED_SECTOR_SIZE)
    sealed = memoryview(stripe)[SEALED_SECTOR_SIZE : 2 * SEALED_SECTOR_SIZE]
    assert cipher.open_sector(1, sealed) == bytes(SECTOR_SIZE)


def test_a_sector_is_never_sealed_twice(keys: VolumeKeys) -> None:
    cipher = keys.stripe_cipher(STRIPE, SALT)
    out = memoryview(bytearray(SEALED_SECTOR_SIZE))
    cipher.seal_sector(3, b"one", out)
    with pytest.raises(AssertionError, match="twice"):
        cipher.seal_sector(3, b"two", out)


@pytest.mark.parametrize("number", [-1, STRIPE_SECTORS_MAX])
def test_sector_numbers_are_bounded(keys: VolumeKeys, number: int) -> None:
    cipher = keys.stripe_cipher(STRIPE, SALT)
    with pytest.raises(AssertionError):
        cipher.seal_sector(number, b"x", memoryview(bytearray(17)))
    with pytest.raises(AssertionError):
        cipher.open_sector(number, bytes(17))


@pytest.mark.parametrize("length", [0, 15, 16, SEALED_SECTOR_SIZE + 1])
def test_impossible_lengths_do_not_open(keys: VolumeKeys, length: int) -> None:
    cipher = keys.stripe_cipher(STRIPE, SALT)
    with pytest.raises(AuthenticationError):
        cipher.open_sector(0, bytes(length))


def test_a_sector_opens_only_where_it_belongs() -> None:
    with make_root() as root, make_root(PoolId(b"Q" * 16)) as foreign:
        keys = root.volume(VOLUME, 1)
        sealed = seal(keys, 5, b"payload")
        strangers = [
            keys.stripe_cipher(StripeId(b"T" * 16), SALT),
            keys.stripe_cipher(STRIPE, b"t" * 24),
            root.volume(VolumeId(b"W" * 16), 1).stripe_cipher(STRIPE, SALT),
            root.volume(VOLUME, 2).stripe_cipher(STRIPE, SALT),
            root.volume(VOLUME, 1, b"erasable salt").stripe_cipher(STRIPE, SALT),
            foreign.volume(VOLUME, 1).stripe_cipher(STRIPE, SALT),
        ]
        for stranger in strangers:
            with pytest.raises(AuthenticationError):
                stranger.open_sector(5, sealed)
        cipher = keys.stripe_cipher(STRIPE, SALT)
        with pytest.raises(AuthenticationError):
            cipher.open_sector(4, sealed)
        with pytest.raises(AuthenticationError):
            cipher.open_sector_into(4, sealed, memoryview(bytearray(7)))
        assert cipher.open_sector(5, sealed) == b"payload"


def test_salts_and_ids_of_the_wrong_size_are_refused(keys: VolumeKeys) -> None:
    with pytest.raises(ValueError, match="24"):
        keys.stripe_cipher(STRIPE, b"short")
    with pytest.raises(ValueError, match="16"):
        keys.stripe_cipher(StripeId(b"short"), SALT)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 64, 200, 65536])
def test_values_round_trip_and_hide_their_length(keys: VolumeKeys, length: int) -> None:
    for filler in (b"\0", b"\x80", b"v"):
        sealed = keys.values.seal(filler * length, b"key")
        assert keys.values.open(sealed, b"key") == filler * length
        assert (len(sealed) - 29) % 32 == 0


def test_equal_values_look_different(keys: VolumeKeys) -> None:
    assert keys.values.seal(b"same", b"key") != keys.values.seal(b"same", b"key")
    assert keys.log.seal(b"same", b"key") != keys.log.seal(b"same", b"key")


def test_values_and_records_are_bound_to_their_place(keys: VolumeKeys) -> None:
    for cipher in (keys.values, keys.log, keys.snapshots):
        sealed = cipher.seal(b"payload", b"here")
        with pytest.raises(AuthenticationError):
            cipher.open(sealed, b"there")
        for cut in (0, 1, 13, 40, len(sealed) - 1):
            with pytest.raises(AuthenticationError):
                cipher.open(sealed[:cut], b"here")
        with pytest.raises(AuthenticationError, match="unknown format"):
            cipher.open(b"\x02" + sealed[1:], b"here")
    with pytest.raises(AuthenticationError):
        keys.snapshots.open(keys.log.seal(b"payload", b""), b"")


@pytest.mark.parametrize("length", [0, 1, 100, 1 << 20])
def test_records_round_trip(keys: VolumeKeys, length: int) -> None:
    payload = bytes(length)
    sealed = keys.log.seal(memoryview(payload), b"aad")
    assert len(sealed) == length + 41
    assert keys.log.open(memoryview(sealed), b"aad") == payload


def test_ciphers_may_be_shared_by_threads(keys: VolumeKeys) -> None:
    plaintexts = [bytes([number]) * SECTOR_SIZE for number in range(8)]
    sealed = [seal(keys, number, plaintext) for number, plaintext in enumerate(plaintexts)]
    cipher = keys.stripe_cipher(STRIPE, SALT)

    def work(turn: int) -> bool:
        number = turn % 8
        record = keys.log.open(keys.log.seal(plaintexts[number], b""), b"")
        value = keys.values.open(keys.values.seal(plaintexts[number], b""), b"")
        return record == value == plaintexts[number] == cipher.open_sector(number, sealed[number])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(800)))


def test_exceptions_carry_no_plaintext(keys: VolumeKeys) -> None:
    sealed = keys.values.seal(b"top secret", b"key")
    with pytest.raises(AuthenticationError) as caught:
        keys.values.open(sealed, b"other key")
    assert "secret" not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_wiped_keys_fail_instead_of_using_zeros() -> None:
    root = make_root()
    keys = root.volume(VOLUME, 1)
    root.wipe()
    root.wipe()
    with pytest.raises(ValueError, match="released"):
        keys.stripe_cipher(STRIPE, SALT)
    with pytest.raises(ValueError, match="released"):
        keys.log.seal(b"", b"")
    with pytest.raises(ValueError, match="released"):
        keys.names.dentry(1, b"name")
    with pytest.raises(AttributeError):
        keys.values.seal(b"", b"")
    with pytest.raises(ValueError, match="wiped"):
        root.header_key().view()


def test_name_hashes_have_the_promised_shape(keys: VolumeKeys) -> None:
    cookies = {keys.names.dentry(1, b"name %d" % index) for index in range(1000)}
    assert len(cookies) == 1000
    assert all(16 <= cookie < 2**63 and cookie % 8 == 0 for cookie in cookies)
    assert keys.names.dentry(1, b"a") != keys.names.dentry(2, b"a")
    assert len(keys.names.node(1, 0)) == 16
    assert keys.names.node(1, 2) != keys.names.node(2, 1)
    assert len(keys.names.xattr(1, b"user.a")) == 8
    assert keys.names.xattr(1, b"a") != keys.names.dentry(1, b"a").to_bytes(8, "big")
