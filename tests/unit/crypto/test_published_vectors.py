"""The primitives, as this machine's OpenSSL runs them, against vectors published by their authors."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from dwfs.crypto import SecretBytes, compute_mac, derive_into


def test_hkdf_sha256_rfc5869_case_1() -> None:
    out = bytearray(42)
    derive_into(
        memoryview(bytes([0x0B] * 22)),
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        memoryview(out),
    )
    assert out.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_hkdf_sha256_rfc5869_case_3_empty_salt() -> None:
    out = bytearray(42)
    derive_into(memoryview(bytes([0x0B] * 22)), b"", b"", memoryview(out))
    assert out.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_aes_256_gcm_mcgrew_viega_case_14() -> None:
    sealed = AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), None)
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_aes_256_gcm_siv_rfc8452_c2() -> None:
    cipher = AESGCMSIV(b"\x01" + bytes(31))
    nonce = b"\x03" + bytes(11)
    assert cipher.encrypt(nonce, b"", None).hex() == "07f5f4169bbf55a8400cd47ea6fd400f"
    sealed = cipher.encrypt(nonce, b"\x01" + bytes(7), None)
    assert sealed.hex() == "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28"


def test_argon2id_rfc9106_section_5_3() -> None:
    tag = Argon2id(
        salt=bytes([2] * 16),
        length=32,
        iterations=3,
        lanes=4,
        memory_cost=32,
        ad=bytes([4] * 12),
        secret=bytes([3] * 8),
    ).derive(bytes([1] * 32))
    assert tag.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def test_argon2id_reads_any_buffer_alike() -> None:
    def run(passphrase: Any) -> bytes:  # Any: the stub knows only bytes, which is what is tested
        kdf = Argon2id(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=8)
        return kdf.derive(passphrase)

    assert run(b"correct horse") == run(memoryview(bytearray(b"correct horse")))


def test_blake2b_rfc7693_appendix_a() -> None:
    assert hashlib.blake2b(b"abc").hexdigest() == (
        "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
        "7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"
    )


def test_keyed_blake2b_reference_vector_0() -> None:
    digest = hashlib.blake2b(b"", key=bytes(range(64))).hexdigest()
    assert digest == (
        "10ebb67700b1868efb4417987acf4690ae9d972fb7a590c2f02871799aaa4786"
        "b5e996e8f0f4eb981fc214b005f42d2ff4233499391653df7aefcbc13fc51568"
    )


def test_hmac_sha256_rfc4231_case_1() -> None:
    with SecretBytes.copy_of(bytes([0x0B] * 20)) as key:
        assert compute_mac(key, b"Hi There").hex() == (
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        )
