"""A pool's configuration survives being written and read; nonsense is refused in one line."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwfs.config import (
    ConfiguredDisk,
    Directories,
    PoolConfig,
    ScrubSchedule,
    SnapshotSchedule,
    Tunables,
    Unlock,
    is_pool_name,
    load_config,
    render_config,
    save_config,
)
from dwfs.errors import FormatError, PoolNotFoundError, UsageError
from dwfs.types import DiskId, PoolId

_PATHS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).map(lambda text: Path("/" + text))


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories.from_environment({"DWFS_ROOT": str(tmp_path)})


def example(name: str = "tank", *paths: Path) -> PoolConfig:
    """A configuration with disks at `paths`."""
    disks = tuple(
        ConfiguredDisk(DiskId(bytes([number]) * 16), path)
        for number, path in enumerate(paths or (Path("/d1"), Path("/d2")))
    )
    return PoolConfig(
        name=name,
        pool=PoolId(b"P" * 16),
        disks=disks,
        unlock=Unlock(keyfile=Path("/etc/key")),
        mount_options=("noatime", "x-y=1"),
        tunables=Tunables(durable_seconds=2.5),
    )


def test_round_trip_and_privacy(directories: Directories) -> None:
    save_config(directories, example())
    assert load_config(directories, "tank") == example()
    assert stat.S_IMODE(directories.config_file("tank").stat().st_mode) == 0o600
    assert directories.pools() == ["tank"]


@given(st.lists(_PATHS, min_size=1, max_size=4, unique=True))
def test_any_path_survives(tmp_path_factory: pytest.TempPathFactory, paths: list[Path]) -> None:
    directories = Directories.from_environment({"DWFS_ROOT": str(tmp_path_factory.mktemp("root"))})
    save_config(directories, example("tank", *paths))
    assert [disk.path for disk in load_config(directories, "tank").disks] == paths


def test_defaults_without_root() -> None:
    directories = Directories.from_environment({})
    assert directories.config_file("tank") == Path("/etc/dwfs/tank.toml")
    assert directories.state_directory("tank") == Path("/var/lib/dwfs/tank")
    assert directories.control_socket("tank") == Path("/run/dwfs/tank/control.sock")


def test_an_unknown_pool_is_named_with_the_known_ones(directories: Directories) -> None:
    save_config(directories, example())
    with pytest.raises(PoolNotFoundError, match="tank"):
        load_config(directories, "other")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".x", "a b", "a\n", "ä", "x" * 65])
def test_bad_names(name: str, directories: Directories) -> None:
    assert not is_pool_name(name)
    with pytest.raises(UsageError):
        load_config(directories, name)


@pytest.mark.parametrize("name", ["a", "tank", "Tank-1_b.c", "0", "x" * 64])
def test_good_names(name: str) -> None:
    assert is_pool_name(name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ("version = 1", ""),
        ('name = "tank"', 'name = "other"'),
        ('name = "tank"', 'name = "tank"\nsurprise = 1'),
        ("durable_seconds = 2.5", "durable_seconds = 0.0"),
        ("rebuild_after_seconds = 900.0", "rebuild_after_seconds = -1.0"),
        ("rebuild_after_seconds = 900.0", "rebuild_after_seconds = 1e12"),
        ("durable_seconds = 2.5", 'durable_seconds = "x"'),
        ("[disks]", "[disks"),
        ("uuid = ", "uuid = 5 #"),
    ],
)
def test_a_broken_file_is_refused(directories: Directories, old: str, new: str) -> None:
    directories.config.mkdir(parents=True)
    text = render_config(example())
    assert old in text
    directories.config_file("tank").write_text(text.replace(old, new))
    with pytest.raises(FormatError, match=r"tank\.toml"):
        load_config(directories, "tank")


@pytest.mark.parametrize("schedule", [ScrubSchedule(0.0), ScrubSchedule(7.5, 50.0)])
def test_a_scrub_schedule_survives(directories: Directories, schedule: ScrubSchedule) -> None:
    config = msgspec.structs.replace(example(), scrub=schedule)
    save_config(directories, config)
    assert load_config(directories, "tank").scrub == schedule


@pytest.mark.parametrize(
    "line", ["every_days = -1.0", "rate_mib = 0.0", "rate = 5", 'every_days = "x"']
)
def test_a_senseless_scrub_schedule_is_refused(directories: Directories, line: str) -> None:
    save_config(directories, example())
    path = directories.config_file("tank")
    text = path.read_text().replace("every_days = 30.0", line)
    assert line in text
    path.write_text(text)
    with pytest.raises(FormatError):
        load_config(directories, "tank")


@pytest.mark.parametrize("kind", ["hourly", "daily", "weekly", "monthly"])
def test_a_snapshot_schedule_survives_and_has_bounds(directories: Directories, kind: str) -> None:
    assert example().snapshots == SnapshotSchedule()
    schedule = SnapshotSchedule(**{kind: 500})
    save_config(directories, msgspec.structs.replace(example(), snapshots=schedule))
    assert load_config(directories, "tank").snapshots == schedule
    path = directories.config_file("tank")
    for wrong in ("-1", "501", '"many"', "1.5", "true"):
        path.write_text(
            render_config(example()).replace(f"{kind} = 0", f"{kind} = {wrong}"),
        )
        with pytest.raises(FormatError, match=kind):
            load_config(directories, "tank")


def test_a_configuration_from_before_there_were_snapshots_is_read(directories: Directories) -> None:
    save_config(directories, example())
    path = directories.config_file("tank")
    text = path.read_text()
    before, _, after = text.partition("[snapshots]")
    path.write_text(before + after[after.index("[disks]") :])
    assert load_config(directories, "tank") == example()
    path.write_text(text.replace("daily = 0", "dayly = 0"))
    with pytest.raises(FormatError, match="dayly"):
        load_config(directories, "tank")
