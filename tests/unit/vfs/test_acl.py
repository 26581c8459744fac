"""The algebra of access control lists, against tables worked out by hand from acl(5)."""

from __future__ import annotations

import errno
import stat

import pytest

from dwfs.errors import PosixError
from dwfs.vfs.acl import (
    GROUP,
    GROUP_OWNER,
    MASK,
    NO_ID,
    OTHER,
    USER,
    USER_OWNER,
    Acl,
    Entry,
    decode,
    encode,
    inherit,
    is_trivial,
    permissions_of,
    validate,
    with_permissions,
)

TAGS = {"u": USER_OWNER, "g": GROUP_OWNER, "m": MASK, "o": OTHER}


def acl(text: str) -> Acl:
    """ "u:7 u5:6 g:5 m:4 o:0" → a list: a digit of permissions, an id after u or g."""
    entries = []
    for word in text.split():
        who, permissions = word.split(":")
        if len(who) > 1:
            entries.append(Entry(USER if who[0] == "u" else GROUP, int(permissions), int(who[1:])))
        else:
            entries.append(Entry(TAGS[who], int(permissions)))
    return tuple(entries)


@pytest.mark.parametrize(
    "text", ["u:7 g:5 o:0", "u:7 u5:6 u9:1 g:5 g3:7 m:4 o:0", "u:7 g:5 m:1 o:0"]
)
def test_what_is_encoded_is_decoded(text: str) -> None:
    assert decode(encode(acl(text))) == acl(text)


def test_the_form_is_that_of_linux() -> None:
    value = encode(acl("u:6 u1000:7 g:4 m:7 o:0"))
    # What getfattr -e hex shows on ext4 after `setfacl -m u:1000:rwx` on a file of mode 0640.
    assert value.hex() == (
        "0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000000ffffffff"
    )


def test_an_empty_value_is_no_list() -> None:
    assert decode(b"") == ()
    assert decode(b"\x02\0\0\0") == ()


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"\x02\0\0", errno.EINVAL),
        (b"\x02\0\0\0\x01", errno.EINVAL),
        (b"\x01\0\0\0" + bytes(8), errno.EOPNOTSUPP),
        (b"\x02\0\0\0" + bytes(8), errno.EINVAL),
    ],
)
def test_foreign_values_are_refused(value: bytes, code: int) -> None:
    with pytest.raises(PosixError) as caught:
        decode(value)
    assert caught.value.errno == code


@pytest.mark.parametrize(
    "text",
    [
        "u:7 g:5",  # nothing for others
        "u:7 u:7 g:5 o:0",  # two owners
        "g:5 u:7 o:0",  # out of order
        "u:7 u5:6 g:5 o:0",  # a named user needs a mask
        "u:7 g:5 g5:6 o:0",
        "u:7 u5:6 u5:7 g:5 m:7 o:0",  # the same user twice
        "u:7 g:5 m:7 m:7 o:0",
        "u:8 g:5 o:0",  # more than rwx
    ],
)
def test_malformed_lists_are_refused(text: str) -> None:
    with pytest.raises(PosixError):
        validate(acl(text))


def test_a_named_entry_needs_an_id() -> None:
    named = Entry(USER, 7, NO_ID)
    with pytest.raises(PosixError):
        validate((Entry(USER_OWNER, 7), named, *acl("g:5 m:7 o:0")))


@pytest.mark.parametrize(
    ("text", "mode"),
    [("u:7 g:5 o:0", 0o750), ("u:7 u5:7 g:5 m:4 o:1", 0o741), ("u:6 g:7 m:0 o:4", 0o604)],
)
def test_the_group_bits_of_the_mode_are_the_mask(text: str, mode: int) -> None:
    assert permissions_of(acl(text)) == mode


@pytest.mark.parametrize(("text", "trivial"), [("u:7 g:5 o:0", True), ("u:7 g:5 m:5 o:0", False)])
def test_only_the_three_base_entries_are_trivial(text: str, trivial: bool) -> None:
    assert is_trivial(acl(text)) is trivial


@pytest.mark.parametrize(
    ("before", "mode", "after"),
    [
        ("u:7 g:5 o:0", 0o640, "u:6 g:4 o:0"),
        ("u:7 u5:7 g:7 m:7 o:7", 0o640, "u:6 u5:7 g:7 m:4 o:0"),
        ("u:0 g:2 g9:7 m:0 o:0", 0o777, "u:7 g:2 g9:7 m:7 o:7"),
    ],
)
def test_chmod_changes_owner_mask_and_other(before: str, mode: int, after: str) -> None:
    assert with_permissions(acl(before), stat.S_IFREG | 0o4000 | mode) == acl(after)


@pytest.mark.parametrize(
    ("default", "mode", "access", "result"),
    [
        # No mask: the group entry takes the group's bits.
        ("u:7 g:7 o:7", 0o644, "u:6 g:4 o:4", 0o644),
        ("u:5 g:5 o:0", 0o666, "u:4 g:4 o:0", 0o440),
        # A mask takes them, and named entries stay as they are.
        ("u:7 u5:7 g:7 m:7 o:5", 0o640, "u:6 u5:7 g:7 m:4 o:0", 0o640),
        ("u:7 g:5 g9:6 m:6 o:0", 0o777, "u:7 g:5 g9:6 m:6 o:0", 0o760),
        ("u:7 u5:7 g:7 m:7 o:7", 0o000, "u:0 u5:7 g:7 m:0 o:0", 0o000),
    ],
)
def test_inheritance_takes_the_place_of_the_umask(
    default: str, mode: int, access: str, result: int
) -> None:
    special = stat.S_IFREG | 0o2000
    assert inherit(acl(default), special | mode) == (acl(access), special | result)
