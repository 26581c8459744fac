"""Our own formats, frozen: a change that breaks one of these makes every existing pool unreadable.

Where it is feasible the answer is computed a second time by plain means (HKDF from `hmac`, the
AEADs called directly), so that the frozen bytes are also the documented ones.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from dwfs.crypto import (
    Argon2Cost,
    KeyfileProtector,
    PassphraseProtector,
    RecoveryProtector,
    RootKeys,
    SecretBytes,
    VolumeKeys,
    add_slot,
    open_root_key,
    parse_recovery_key,
)
from dwfs.crypto.recovery_key import format_recovery_key
from dwfs.types import PoolId, StripeId, VolumeId

POOL = PoolId(b"pool-id-16-bytes")
VOLUME = VolumeId(b"volume-id-16-byt")
STRIPE = StripeId(b"stripe-id-16-byt")
ROOT = bytes(range(100, 132))
SALT = bytes(range(50, 74))
VERSION = 7
RECOVERY_KEY = "000G40T8-0G2GC1WH-104GM2ZX-1G6GW3S4-208H44S5-2GAHC5ZW-30CHM6WG-3GEHW7T9"


def counting_bytes(count: int) -> bytes:
    """Predictable "randomness": 0, 1, 2 …"""
    return bytes(range(count))


def plain_hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def plain_key(purpose: bytes) -> bytes:
    volume_key = plain_hkdf(ROOT, b"", b"dwfs volume" + POOL + VOLUME + VERSION.to_bytes(4, "big"))
    return plain_hkdf(volume_key, b"", purpose)


@pytest.fixture
def root() -> Iterator[RootKeys]:
    with RootKeys(SecretBytes.copy_of(ROOT), POOL, counting_bytes) as keys:
        yield keys


@pytest.fixture
def keys(root: RootKeys) -> VolumeKeys:
    return root.volume(VOLUME, VERSION)


def test_header_key(root: RootKeys) -> None:
    with root.header_key().view() as view:
        assert bytes(view) == plain_hkdf(ROOT, b"", b"dwfs header" + POOL)
        assert view.hex() == "db895d4cea202bb536eac8f5721807ec11c3aca1266f8e1928c0dd56d93917fc"


def test_stripe_sectors(keys: VolumeKeys) -> None:
    one_use = plain_hkdf(
        plain_key(b"dwfs data"),
        SALT,
        b"dwfs stripe" + POOL + VOLUME + STRIPE + VERSION.to_bytes(4, "big"),
    )
    out = bytearray(5 + 16)
    keys.stripe_cipher(STRIPE, SALT).seal_sector(2, b"hello", memoryview(out))
    nonce = (2).to_bytes(12, "little")
    assert out == AESGCM(one_use).encrypt(nonce, b"hello", struct.pack("<II", 2, 5))
    assert out.hex() == "c64978fdba5b82976f6ea507cbe3cea261e656df8d"
    full = bytearray(16400)
    keys.stripe_cipher(STRIPE, SALT).seal_sector(255, bytes(16384), memoryview(full))
    assert (
        hashlib.sha256(full).hexdigest()
        == "77a50de0f3fc443a6d457fa44b321f1a4a122f56def10414b86edeb62a8ff919"
    )


def test_values(keys: VolumeKeys) -> None:
    sealed = keys.values.seal(b"value", b"key")
    nonce = counting_bytes(12)
    padded = b"value\x80" + bytes(26)
    plain = AESGCMSIV(plain_key(b"dwfs value")).encrypt(nonce, padded, b"key")
    assert sealed == b"\x01" + nonce + plain
    assert sealed.hex() == (
        "01000102030405060708090a0b63eab34196c731880456bd34bc885695753681fcc2cf3eade04daf"
        "ca7e3ba97c265ac4f6c61677492872a679ed7cb783"
    )


def test_records(keys: VolumeKeys) -> None:
    info = b"dwfs record" + POOL + VOLUME + VERSION.to_bytes(4, "big")
    salt = counting_bytes(24)
    for cipher, purpose in ((keys.log, b"dwfs log"), (keys.snapshots, b"dwfs snapshot")):
        one_use = plain_hkdf(plain_key(purpose), salt, info)
        plain = AESGCM(one_use).encrypt(bytes(12), b"record", b"aad")
        assert cipher.seal(b"record", b"aad") == b"\x01" + salt + plain
    assert keys.log.seal(b"record", b"aad").hex() == (
        "01000102030405060708090a0b0c0d0e0f1011121314151617bab672c5d7c14ac1f953aa36e98a56"
        "00b14268f9741c"
    )
    assert keys.snapshots.seal(b"record", b"aad").hex() == (
        "01000102030405060708090a0b0c0d0e0f1011121314151617ed36265d21972e3f960f4271364934"
        "fdfbeb8dee04d2"
    )


def test_names(keys: VolumeKeys) -> None:
    plain = hashlib.blake2b(
        (9).to_bytes(8, "big") + b"file",
        digest_size=8,
        key=plain_key(b"dwfs name"),
        person=b"dwfs dentry",
    ).digest()
    cookie = keys.names.dentry(9, b"file")
    assert cookie == int.from_bytes(plain, "big") & 0x7FFFFFFFFFFFFFF8
    assert f"{cookie:016x}" == "4cbfb8c705ce1318"
    assert keys.names.node(9, 3).hex() == "8007ea1ae0beddf4203a2901b5e84809"
    assert keys.names.xattr(9, b"user.mime_type").hex() == "c7f796d43f7446b5"


def test_recovery_key() -> None:
    with SecretBytes.copy_of(bytes(range(32))) as key, parse_recovery_key(RECOVERY_KEY) as parsed:
        assert parsed.equals(key)
        assert format_recovery_key(key) == RECOVERY_KEY


def test_keyslots() -> None:
    cheap = Argon2Cost(memory_kib=8192, passes=1, lanes=2)
    expected = {
        "passphrase": (
            "9601c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f93cd2000"
            "0102c42019f2f3fb85c4716aba023b94238b9cacd497307cea036b575808cf13fec6b66cc40c0001"
            "02030405060708090a0bc430301c1f39b76348fe50b3d82a59de877bf0c7d5cb10c99f48595513de"
            "b570142a2d1652ea8a9d05bc71e6cea3a98001d1"
        ),
        "keyfile": (
            "9601c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc0c4202e"
            "e567992aba5c56667eb4b8ffb0df7991f752c459832b7492463e2ee3760097c40c00010203040506"
            "0708090a0bc430d8059e16baac2721ce7ec800472d775836304ba89fbdd372fc1a16b0e8148eef78"
            "c99f3a262fcc35df13abe0ded64a5a"
        ),
        "recovery": (
            "9601c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc0c4204a"
            "1857cbdbf5e326b222ea1026b63182fcb74b140671d00ec54f50e302459733c40c00010203040506"
            "0708090a0bc430410aa40a74b5bf8363e4e90d101137a39e7004983bb389770b1d900fac41c6a55c"
            "c50a53bf8e89d7c78f1fe23fd47314"
        ),
    }
    for protector in (
        PassphraseProtector(b"correct horse battery staple", cheap, counting_bytes),
        KeyfileProtector(bytes(range(64)), counting_bytes),
        RecoveryProtector(RECOVERY_KEY, counting_bytes),
    ):
        with SecretBytes.copy_of(ROOT) as root:
            slot = add_slot(root, protector, pool=POOL, slots=(), label="", created_ns=0)
            assert slot.wrapped.hex() == expected[protector.kind]
            with open_root_key([slot], protector, POOL) as opened:
                assert opened.equals(root)
