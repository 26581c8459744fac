"""The stream's format: whatever is done to a stream, it is refused, and nothing is made of it."""

from __future__ import annotations

import hmac
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwfs.errors import (
    AuthenticationError,
    DamageError,
    DwfsError,
    ForeignFormatError,
    NewerFormatError,
)
from dwfs.limits import SEND_FRAME_SIZE_MAX, SEND_HEADER_SIZE_MAX
from dwfs.send.format import (
    FrameSealer,
    Header,
    StreamDecoder,
    decode_records,
    decode_totals,
    encode_header,
    encode_record,
    encode_records,
    encode_totals,
)
from dwfs.types import InodeNumber
from dwfs.volume.transfer import (
    DataRecord,
    GoneRecord,
    HoleRecord,
    NameRecord,
    Origin,
    StreamRecord,
    Totals,
    XattrRecord,
)

TOTALS = Totals(3, -4, 5, 6)


class SmallCipher:
    """A real seal, small and quick: XOR would do for secrecy, the tag is what is tested."""

    def __init__(self, key: bytes = b"k" * 32) -> None:
        self._key = key

    def _tag(self, number: int, content: bytes, aad: bytes) -> bytes:
        message = number.to_bytes(8, "big") + len(aad).to_bytes(8, "big") + aad + content
        return blake2b(message, key=self._key, digest_size=16).digest()

    def seal(self, number: int, content: bytes, aad: bytes) -> bytes:
        return content + self._tag(number, content, aad)

    def open(self, number: int, sealed: bytes, aad: bytes) -> bytes:
        content, tag = sealed[:-16], sealed[-16:]
        if not hmac.compare_digest(self._tag(number, content, aad), tag):
            raise AuthenticationError("no")
        return content


def header(stream: bytes = b"s" * 16, name: str = "b") -> Header:
    origin = Origin(b"p" * 16, b"v" * 16, 7, 1_000, name)
    return Header(stream, origin, None, 9, 10, "pool", b"z" * 32, None, b"c" * 32)


def make(
    contents: list[bytes], stream: bytes = b"s" * 16, cipher: SmallCipher | None = None
) -> list[bytes]:
    """The pieces of a stream: header, frames, last frame."""
    head = header(stream)
    encoded = encode_header(head)
    sealer = FrameSealer(head, encoded, cipher or SmallCipher())
    frames = [sealer.seal(content) for content in contents]
    return [encoded, *frames, sealer.seal(encode_totals(TOTALS), last=True)]


def read(stream: bytes, step: int = 1 << 20) -> list[bytes]:
    """Decode a stream fed in pieces; all frames' contents. Raises what the decoder raises."""
    decoder, contents = StreamDecoder(), []
    unlocked = False
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        if not unlocked:
            if decoder.header() is None:
                continue
            decoder.unlock(SmallCipher())
            unlocked = True
        while (frame := decoder.next_frame()) is not None:
            contents.append(frame.content)
    decoder.end()
    assert decoder.complete
    assert decoder.wanted == 0
    return contents


CONTENTS = st.lists(st.binary(max_size=200), max_size=5)


@given(CONTENTS, st.integers(1, 300))
def test_what_went_in_comes_out_however_it_is_cut(contents: list[bytes], step: int) -> None:
    assert read(b"".join(make(contents)), step) == [*contents, encode_totals(TOTALS)]


@given(CONTENTS, st.data())
def test_a_stream_cut_short_is_refused(contents: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(make(contents))
    cut = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(DamageError if cut else ForeignFormatError, match=r"end|empty"):
        read(stream[:cut])


@settings(max_examples=300)
@given(CONTENTS, st.data())
def test_a_flipped_bit_is_found_wherever_it_is(contents: list[bytes], data: st.DataObject) -> None:
    stream = bytearray(b"".join(make(contents)))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DwfsError):
        read(bytes(stream))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.data())
def test_frames_left_out_repeated_or_swapped_are_told(
    contents: list[bytes], data: st.DataObject
) -> None:
    pieces = make(contents)
    first = data.draw(st.integers(1, len(pieces) - 2))
    match data.draw(st.sampled_from(["drop", "repeat", "swap"])):
        case "drop":
            del pieces[first]
        case "repeat":
            pieces.insert(first, pieces[first])
        case _:
            pieces[first], pieces[first + 1] = pieces[first + 1], pieces[first]
    with pytest.raises(DamageError, match="out of order"):
        read(b"".join(pieces))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_a_frame_of_another_stream_is_told(contents: list[bytes], data: st.DataObject) -> None:
    ours, theirs = make(contents), make(contents, b"t" * 16)
    place = data.draw(st.integers(1, len(ours) - 1))
    ours[place] = theirs[place]
    with pytest.raises(DamageError, match="another stream"):
        read(b"".join(ours))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_a_renumbered_or_relabelled_frame_does_not_open(
    contents: list[bytes], data: st.DataObject
) -> None:
    pieces = make(contents)
    place = data.draw(st.integers(1, len(pieces) - 1))
    other = bytearray(pieces[data.draw(st.integers(1, len(pieces) - 1))])
    number = (place - 1).to_bytes(8, "big")
    if bytes(other[8:16]) == number:
        other[16] ^= 1  # the last flag
    other[8:16] = number
    pieces[place] = bytes(other)
    with pytest.raises(DamageError):
        read(b"".join(pieces))


@given(CONTENTS, st.binary(min_size=1, max_size=50), st.integers(1, 100))
def test_nothing_may_follow_the_end(contents: list[bytes], more: bytes, step: int) -> None:
    with pytest.raises(DamageError, match="after the stream's end"):
        read(b"".join(make(contents)) + more, step)


@given(CONTENTS)
def test_another_key_opens_nothing(contents: list[bytes]) -> None:
    with pytest.raises(DamageError, match="frame 0"):
        read(b"".join(make(contents, cipher=SmallCipher(b"other"))))


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_noise_is_foreign(noise: bytes) -> None:
    with pytest.raises(DwfsError):
        read(noise)


@given(st.integers(2, 2**32 - 1))
def test_a_newer_format_is_told(version: int) -> None:
    stream = b"".join(make([]))
    with pytest.raises(NewerFormatError, match="version"):
        read(stream[:8] + version.to_bytes(4, "big") + stream[12:])


@given(st.integers(0, 2**32 - 1))
def test_no_length_is_trusted(length: int) -> None:
    head, frame, _ = make([b"content"])
    forged = head[:12] + length.to_bytes(4, "big") + head[16:]
    decoder = StreamDecoder()
    decoder.feed(forged[:16])
    try:
        assert decoder.wanted <= SEND_HEADER_SIZE_MAX + 16
    except DamageError:
        assert length > SEND_HEADER_SIZE_MAX
    decoder = StreamDecoder()
    decoder.feed(head)
    assert decoder.header() is not None
    decoder.unlock(SmallCipher())
    decoder.feed(frame[:18] + length.to_bytes(4, "big"))
    try:
        assert decoder.wanted <= SEND_FRAME_SIZE_MAX
    except DamageError:
        assert length > SEND_FRAME_SIZE_MAX


INODES = st.integers(1, 2**48 - 1).map(InodeNumber)
RECORDS = st.one_of(
    st.builds(GoneRecord, INODES),
    st.builds(XattrRecord, INODES, st.binary(max_size=9), st.none() | st.binary(max_size=9)),
    st.builds(HoleRecord, INODES, st.integers(0, 2**62), st.integers(1, 2**30)),
    st.builds(NameRecord, INODES, st.binary(max_size=9), INODES, st.integers(0, 15)),
    st.builds(DataRecord, INODES, st.integers(0, 2**62), st.binary(max_size=9)),
)


@given(st.lists(RECORDS, max_size=20))
def test_records_come_back(records: list[StreamRecord]) -> None:
    assert decode_records(encode_records([encode_record(one) for one in records])) == records


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_foreign_content_is_refused_and_never_crashes(content: bytes) -> None:
    for decode in (decode_records, decode_totals):
        try:
            decode(content)
        except DwfsError:
            pass
