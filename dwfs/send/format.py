"""The format of a send stream: a header in the clear, then sealed frames. Sans I/O.

    header
        magic       8 bytes   "dwfssend"
        format      4 bytes   big-endian; 1
        length      4 bytes   of the content that follows, at most HEADER_SIZE_MAX
        content     msgpack   `Header`; authenticated as part of every frame's AAD
        checksum   16 bytes   BLAKE2b of all of the above: tells damage from a wrong key
    frame, any number of times
        head       22 bytes   magic "dwfr" | first 4 bytes of the stream id | number (8) |
                              flags (1; 1: the last) | reserved (1; 0) | length of `sealed` (4)
        sealed                AES-256-GCM of the frame's content under the stream's key, tag included;
                              nonce = number, AAD = BLAKE2b of the header | head

The key exists for this stream only: it is derived from a secret and the 32 random bytes in the header
(`dwfs.send.keys`), so numbers can serve as nonces. The number and the flag are bound into every
frame: none can be left out, repeated, moved, or taken from another stream, and the end can't be cut off.

What is wrong is told apart as far as it can be, because operators do different things about a broken
line, a wrong file and a wrong key. A number or an id in the clear is only believed to name the mistake.

The content of a frame is a msgpack array of records (`dwfs.volume.transfer`), or the totals in the last.
No length in the stream is trusted: each is bounded before anything is allocated for it.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import msgspec

from dwfs.errors import (
    AuthenticationError,
    DamageError,
    ForeignFormatError,
    FormatError,
    NewerFormatError,
)
from dwfs.limits import (
    AEAD_TAG_SIZE,
    SEND_FRAME_CONTENT_MAX,
    SEND_FRAME_SIZE_MAX,
    SEND_FRAMES_MAX,
    SEND_HEADER_SIZE_MAX,
)
from dwfs.volume.snapshots import is_name
from dwfs.volume.transfer import Origin, StreamRecord, Totals

FORMAT: Final = 1
SALT_SIZE: Final = 32
STREAM_ID_SIZE: Final = 16
KEY_KINDS: Final = ("pool", "keyfile", "passphrase")

_MAGIC: Final = b"dwfssend"
_FRAME_MAGIC: Final = b"dwfr"
_CHECKSUM_SIZE: Final = 16
_DIGEST_SIZE: Final = 32
_LAST: Final = 1  # flag
_ID_SHOWN: Final = 4  # bytes of the stream id in each frame's head

_prefix = struct.Struct(">8sII")
_head = struct.Struct(">4s4sQBBI")


class FrameCipher(Protocol):
    """AES-256-GCM under the key of one stream."""

    def seal(self, number: int, content: bytes, aad: bytes) -> bytes:
        """The content, sealed with `number` as nonce; the tag at the end."""

    def open(self, number: int, sealed: bytes, aad: bytes) -> bytes:
        """The content. Raises AuthenticationError."""


class KeyCost(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Argon2id's parameters, where the secret is a passphrase."""

    memory_kib: int
    passes: int
    lanes: int


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What stands in front of a stream. Fields are only ever added at the end, with a default."""

    stream: bytes  # 16 random bytes
    snapshot: Origin  # that it ends with
    base: Origin | None  # that it starts from; None: from nothing
    inode_count: int  # of the snapshot, for people
    allocated_bytes: int  # likewise
    key_kind: str  # whose secret opens it: "pool" (root key), "keyfile", "passphrase"
    salt: bytes  # 32 random bytes; makes the stream's key out of the secret
    cost: KeyCost | None  # for a passphrase
    commitment: bytes  # 32 bytes, derived with the key: tells a wrong secret from damage

    def validate(self) -> None:
        """Raises DamageError if something can't be."""
        sizes = len(self.stream) == STREAM_ID_SIZE and len(self.salt) == SALT_SIZE
        kinds = self.key_kind in KEY_KINDS and (self.cost is not None) == (
            self.key_kind == "passphrase"
        )
        origins = [self.snapshot] + ([] if self.base is None else [self.base])
        sound = all(
            len(one.pool) == 16 == len(one.volume)
            and 0 < one.epoch < 2**32
            and 0 <= one.time_ns < 2**63
            and is_name(one.name)
            for one in origins
        )
        counts = 0 <= self.inode_count < 2**63 and 0 <= self.allocated_bytes < 2**63
        if not (sizes and kinds and sound and counts and len(self.commitment) == _DIGEST_SIZE):
            raise DamageError("the stream's header makes no sense: it was made by a faulty program")


class Frame(NamedTuple):
    """One opened frame."""

    number: int
    last: bool
    content: bytes


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)
_records_decoder = msgspec.msgpack.Decoder(list[StreamRecord])
_totals_decoder = msgspec.msgpack.Decoder(Totals)

encode_record = _encoder.encode


def encode_header(header: Header) -> bytes:
    """The first bytes of a stream."""
    content = _encoder.encode(header)
    assert len(content) <= SEND_HEADER_SIZE_MAX
    encoded = _prefix.pack(_MAGIC, FORMAT, len(content)) + content
    return encoded + _checksum(encoded)


def _checksum(encoded: bytes) -> bytes:
    return blake2b(encoded, digest_size=_CHECKSUM_SIZE, person=b"dwfs send head").digest()


def header_digest(encoded: bytes) -> bytes:
    """What stands for the header in each frame's AAD."""
    return blake2b(encoded, digest_size=_DIGEST_SIZE, person=b"dwfs send aad").digest()


def encode_records(records: list[bytes]) -> bytes:
    """A frame's content out of encoded records."""
    return b"\xdd" + len(records).to_bytes(4, "big") + b"".join(records)  # msgpack: array 32


def decode_records(content: bytes) -> list[StreamRecord]:
    """The inverse. Raises FormatError."""
    try:
        return _records_decoder.decode(content)
    except msgspec.MsgspecError as error:
        raise NewerFormatError(
            f"the stream has records that this dwfs does not know ({error}): receive it with the "
            "version that made it"
        ) from None


def encode_totals(totals: Totals) -> bytes:
    """The content of the last frame."""
    return _encoder.encode(totals)


def decode_totals(content: bytes) -> Totals:
    """The inverse. Raises FormatError."""
    try:
        return _totals_decoder.decode(content)
    except msgspec.MsgspecError as error:
        raise FormatError(f"the stream's last frame is not understood: {error}") from None


class FrameSealer:
    """Makes the frames of one stream, in order."""

    def __init__(self, header: Header, encoded_header: bytes, cipher: FrameCipher) -> None:
        self._id = header.stream[:_ID_SHOWN]
        self._digest = header_digest(encoded_header)
        self._cipher = cipher
        self._number = 0
        self._ended = False

    def seal(self, content: bytes, *, last: bool = False) -> bytes:
        """The next frame as it stands in the stream."""
        assert not self._ended, "nothing follows the last frame"
        assert len(content) <= SEND_FRAME_CONTENT_MAX, "the packer bounds frames"
        assert self._number < SEND_FRAMES_MAX
        number, self._ended = self._number, last
        self._number += 1
        length = len(content) + AEAD_TAG_SIZE
        head = _head.pack(_FRAME_MAGIC, self._id, number, _LAST if last else 0, 0, length)
        return head + self._cipher.seal(number, content, self._digest + head)


class StreamDecoder:
    """Takes a stream in pieces of any size; gives the header, then frames, and finds every fault.

    Feed it, then ask `header` or `next_frame`; None means that more bytes are needed. Say `end` when
    there are no more. At most one frame and what was fed beyond it is held.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._taken = 0  # bytes of the buffer that are done with
        self._position = 0  # in the stream, of the first byte that is not
        self._header: Header | None = None
        self._digest = b""
        self._cipher: FrameCipher | None = None
        self._number = 0
        self._ended = False

    @property
    def complete(self) -> bool:
        """Whether the last frame has come."""
        return self._ended

    @property
    def wanted(self) -> int:
        """How many bytes more are needed before anything can be said; 0 at the end."""
        if self._ended:
            return 0
        have = len(self._buffer) - self._taken
        if self._header is None:
            need = _prefix.size
            if have >= need:
                need += self._header_rest()
        else:
            need = _head.size
            if have >= need:
                need += self._check_head()[2]
        return max(0, need - have)

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the stream."""
        if self._taken:
            del self._buffer[: self._taken]
            self._taken = 0
        self._buffer += piece
        if self._ended and self._buffer:
            raise DamageError("there is more after the stream's end: it was joined with something")

    def header(self) -> Header | None:
        """The header, once it is there. Raises FormatError, DamageError."""
        if self._header is None and len(self._buffer) >= _prefix.size:
            length = self._header_rest()
            if len(self._buffer) < _prefix.size + length:
                return None
            encoded = self._take(_prefix.size + length)
            content, checksum = encoded[:-_CHECKSUM_SIZE], encoded[-_CHECKSUM_SIZE:]
            if not hmac.compare_digest(_checksum(content), checksum):
                raise DamageError("the stream's header is damaged: send it again")
            try:
                header = _header_decoder.decode(content[_prefix.size :])
            except msgspec.MsgspecError as error:
                raise FormatError(f"the stream's header is not understood: {error}") from None
            header.validate()
            self._header, self._digest = header, header_digest(encoded)
        return self._header

    def unlock(self, cipher: FrameCipher) -> None:
        """Say how frames are opened; between the header and the first frame."""
        assert self._header is not None, "the header names the key"
        self._cipher = cipher

    def next_frame(self) -> Frame | None:
        """The next frame, once all of it is there. Raises DamageError."""
        assert self._cipher is not None, "unlock comes first"
        if self._ended or len(self._buffer) - self._taken < _head.size:
            return None
        number, flags, length = self._check_head()
        if len(self._buffer) - self._taken < _head.size + length:
            return None
        head = self._take(_head.size)
        sealed = self._take(length)
        try:
            content = self._cipher.open(number, sealed, self._digest + head)
        except AuthenticationError:
            raise DamageError(
                f"frame {number} of the stream is damaged (around byte {self._position:,}): send it again"
            ) from None
        self._number += 1
        if flags & _LAST:
            self._ended = True
            if len(self._buffer) > self._taken:
                raise DamageError(
                    "there is more after the stream's end: it was joined with something"
                )
        return Frame(number, bool(flags & _LAST), content)

    def end(self) -> None:
        """There are no more bytes. Raises DamageError if there should be."""
        if self._ended:
            return
        if self._header is None:
            if not self._position and not self._buffer:
                raise ForeignFormatError("there is no stream: the input is empty")
            raise DamageError("the stream ends within its header")
        have = self._position + len(self._buffer) - self._taken
        raise DamageError(
            f"the stream ends early, after {have:,} bytes: the connection broke, or the file is cut short"
        )

    def _header_rest(self) -> int:
        magic, version, length = _prefix.unpack_from(self._buffer)
        if magic != _MAGIC:
            raise ForeignFormatError("this is not a stream of 'dwfs send'")
        if version > FORMAT:
            raise NewerFormatError(
                f"the stream has format {version}, this dwfs reads {FORMAT}: receive it with the "
                "version that made it"
            )
        if version != FORMAT or length > SEND_HEADER_SIZE_MAX:
            raise DamageError("the stream's header is damaged: send it again")
        return int(length) + _CHECKSUM_SIZE

    def _check_head(self) -> tuple[int, int, int]:
        """(number, flags, length of what follows) of the frame whose head is there."""
        assert self._header is not None, "frames come after the header"
        magic, stream, number, flags, reserved, length = _head.unpack_from(
            self._buffer, self._taken
        )
        where = f"frame {self._number} of the stream (at byte {self._position:,})"
        if magic != _FRAME_MAGIC or reserved or flags & ~_LAST or length > SEND_FRAME_SIZE_MAX:
            raise DamageError(f"{where} is damaged: send it again")
        if stream != self._header.stream[:_ID_SHOWN]:
            raise DamageError(f"{where} belongs to another stream: two were joined")
        if number != self._number:
            raise DamageError(
                f"{where} is number {number}: frames are missing, repeated or out of order"
            )
        return number, flags, length

    def _take(self, count: int) -> bytes:
        start = self._taken
        self._taken += count
        self._position += count
        with memoryview(self._buffer) as view:
            return bytes(view[start : self._taken])
