"""The key of a send stream: one for each stream, told from others, and no nonce twice."""

from __future__ import annotations

import pytest

from dwfs.crypto import Argon2Cost, KeyfileProtector, PassphraseProtector, SecretBytes, StreamKey
from dwfs.errors import AuthenticationError, DamageError, UsageError, WrongKeyError
from dwfs.send import StreamSecret
from dwfs.send.format import Header, KeyCost
from dwfs.volume.transfer import Origin

SALT = bytes(range(32))
STREAM = b"i" * 16
CHEAP = Argon2Cost(memory_kib=8 * 1024, passes=1, lanes=1)


def root() -> SecretBytes:
    return SecretBytes.copy_of(b"r" * 32)


def header_of(secret: StreamSecret, cost: KeyCost | None = None) -> Header:
    cost = cost or secret.cost
    origin = Origin(b"p" * 16, b"v" * 16, 1, 1, "one")
    commitment = secret.key(STREAM, SALT, secret.cost).commitment
    return Header(STREAM, origin, None, 1, 0, secret.kind, SALT, cost, commitment)


def test_what_was_sealed_opens_in_its_place_only() -> None:
    key = StreamKey.of_root(root(), SALT, STREAM)
    sealed = key.seal(7, b"content", b"aad")
    assert StreamKey.of_root(root(), SALT, STREAM).open(7, sealed, b"aad") == b"content"
    for number, aad in ((8, b"aad"), (7, b"other")):
        with pytest.raises(AuthenticationError):
            key.open(number, sealed, aad)


def test_no_number_is_sealed_twice() -> None:
    key = StreamKey.of_root(root(), SALT, STREAM)
    key.seal(3, b"a", b"")
    for number in (3, 2):
        with pytest.raises(AssertionError, match="twice"):
            key.seal(number, b"b", b"")


def test_every_stream_has_a_key_of_its_own() -> None:
    key = StreamKey.of_root(root(), SALT, STREAM)
    others = [
        StreamKey.of_root(root(), SALT, b"j" * 16),
        StreamKey.of_root(root(), bytes(32), STREAM),
        StreamKey.of_root(SecretBytes.copy_of(b"q" * 32), SALT, STREAM),
    ]
    sealed = key.seal(0, b"content", b"")
    for other in others:
        assert not other.fits(key.commitment)
        with pytest.raises(AuthenticationError):
            other.open(0, sealed, b"")


@pytest.mark.parametrize(
    "given",
    [
        None,
        KeyfileProtector(bytes(range(64))),
        PassphraseProtector(b"correct horse", CHEAP),
    ],
)
def test_the_same_secret_opens_on_the_other_side(given: object) -> None:
    here, there = StreamSecret(root(), given), StreamSecret(root(), given)
    header = header_of(here)
    header.validate()
    sealed = here.key(STREAM, SALT, here.cost).seal(0, b"content", b"")
    assert there.key_for(header).open(0, sealed, b"") == b"content"


def test_a_wrong_secret_is_told() -> None:
    keyfile, passphrase = KeyfileProtector(bytes(range(64))), PassphraseProtector(b"horse", CHEAP)
    with pytest.raises(WrongKeyError, match="not the one"):
        StreamSecret(root(), KeyfileProtector(bytes(range(1, 65)))).key_for(
            header_of(StreamSecret(root(), keyfile))
        )
    with pytest.raises(WrongKeyError, match="sealed with a passphrase"):
        StreamSecret(root(), keyfile).key_for(header_of(StreamSecret(root(), passphrase)))
    with pytest.raises(WrongKeyError, match="this pool has another"):
        other = SecretBytes.copy_of(b"q" * 32)
        StreamSecret(other).key_for(header_of(StreamSecret(root())))


def test_a_hostile_header_takes_no_memory() -> None:
    secret = StreamSecret(root(), PassphraseProtector(b"horse", CHEAP))
    header = header_of(secret, KeyCost(2**32 - 1, 1, 1))
    with pytest.raises(DamageError, match="more than this version takes on"):
        secret.key_for(header)


def test_only_what_both_sides_can_have_is_taken() -> None:
    with pytest.raises(UsageError):
        StreamSecret(root(), object())
