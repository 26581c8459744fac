"""`-o` options: what is understood, ignored and refused."""

from __future__ import annotations

import pytest

from dwfs.errors import UsageError
from dwfs.fuse import MountOptions, parse_mount_options
from dwfs.fuse.mounting import libfuse_options


@pytest.mark.parametrize(
    "text",
    [
        "",
        "defaults",
        "noauto,x-systemd.automount,x-gvfs-show,nofail,_netdev,user,comment=hello",
        " defaults , nofail ",
    ],
)
def test_what_concerns_only_fstab_is_ignored(text: str) -> None:
    assert parse_mount_options(text) == MountOptions()


def test_kernel_options() -> None:
    options = parse_mount_options("ro,nodev,nosuid,noexec,noatime,sync,dirsync,allow_other")
    assert options == MountOptions(
        read_only=True,
        dev=False,
        suid=False,
        exec=False,
        access_time="noatime",
        synchronous=True,
        directory_synchronous=True,
        allow_other=True,
        given=options.given,
    )
    assert "read_only" in options.given


@pytest.mark.parametrize(
    ("text", "read_only"), [("ro,rw", False), ("rw,ro", True), ("defaults,ro", True)]
)
def test_the_last_word_wins(text: str, read_only: bool) -> None:
    assert parse_mount_options(text).read_only is read_only


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("atime", "relatime"),
        ("relatime", "relatime"),
        ("noatime", "noatime"),
        ("strictatime", "strictatime"),
        ("noatime,relatime", "relatime"),
    ],
)
def test_access_time(text: str, policy: str) -> None:
    assert parse_mount_options(text).access_time == policy


def test_our_own_options() -> None:
    options = parse_mount_options("durable_seconds=1.5,passphrase_file=/a=b/c,fsname=box,remount")
    assert options.durable_seconds == 1.5
    assert options.passphrase_file == "/a=b/c"
    assert options.fsname == "box"
    assert options.remount


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rw,nosuch", "nosuch"),
        ("noatme", "noatme"),
        ("durable_seconds", "durable_seconds"),
        ("durable_seconds=soon", "soon"),
        ("durable_seconds=nan", "nan"),
        ("durable_seconds=0", "durable_seconds"),
        ("durable_seconds=1e9", "durable_seconds"),
        ("keyfile=", "keyfile"),
        ("keyfile=/k,passphrase_file=/p", "keyfile"),
        ("ro=1", "ro=1"),
    ],
)
def test_everything_else_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_mount_options(text)


def test_options_for_libfuse() -> None:
    options = parse_mount_options("ro,noexec,noatime,allow_other")
    assert libfuse_options("tank", options) == {
        "fsname=tank",
        "subtype=dwfs",
        "default_permissions",
        "ro",
        "noexec",
        "noatime",
        "allow_other",
    }
