"""`dwfs bench DIR`: how fast a mounted filesystem is for what people do with it.

Works on any directory, so that a pool can be put beside a plain disk or another filesystem. It
measures what a program sees: system calls, nothing below them. Writing steps end with an `fsync`
where the data would otherwise only be in the kernel's memory. "Cold" steps begin with empty
caches; only root can empty the kernel's caches of the disks below, so for other users cold means
that the file's own pages were dropped, and the output says so.

All steps run once at a small scale first, untimed, so that the first figure doesn't pay for
connections, code paths and allocations that every later one finds ready.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dwfs.cli.output import ProgressLine, render_table, warn
from dwfs.errors import DwfsError, NoSpaceError, UsageError

_MEGABYTE: Final = 1_000_000
_CHUNK: Final = 1 << 20
_PAGE: Final = 4096
_SMALL: Final = 8192
_SEED: Final = 7  # the same places in every run, so that runs can be compared
_TREE_PACKAGES: Final = ("asyncio", "email", "json", "unittest", "xml", "importlib")
_SPACE_FACTOR: Final = 3  # rewriting a file needs room for both versions before cleaning


class Scale(NamedTuple):
    """How much each step does."""

    size_mib: int
    random_reads: int
    random_writes: int
    synchronous_writes: int
    files: int
    tree_copies: int


class Step(NamedTuple):
    """One measured activity."""

    name: str
    unit: str
    amount: float  # in units; divided by the seconds that `work` took
    work: Callable[[], None]
    cold: bool = False


class Workload:
    """The steps, in the order in which later ones find what earlier ones made."""

    def __init__(self, directory: Path, scale: Scale) -> None:
        self._big = directory / "big"
        self._synchronous = directory / "synchronous"
        self._many = directory / "many"
        self._small = directory / "small"
        self._trees = directory / "trees"
        self._scale = scale
        # Random bytes: nothing below can compress or recognise them.
        self._chunk = os.urandom(_CHUNK)
        self._tree = list(_source_files())

    def steps(self) -> list[Step]:
        """All steps."""
        scale = self._scale
        megabytes = scale.size_mib * _CHUNK / _MEGABYTE
        copied = len(self._tree) * scale.tree_copies
        return [
            Step("sequential_write", "MB/s", megabytes, self._write_big),
            Step("sequential_rewrite", "MB/s", megabytes, self._write_big),
            Step("sequential_read_cold", "MB/s", megabytes, self._read_big, cold=True),
            Step("sequential_read_warm", "MB/s", megabytes, self._read_big),
            Step("random_read_4k_cold", "/s", scale.random_reads, self._read_randomly, cold=True),
            Step("random_write_4k", "/s", scale.random_writes, self._write_randomly),
            Step("write_fdatasync_4k", "/s", scale.synchronous_writes, self._write_synchronously),
            Step("create", "/s", scale.files, self._create),
            Step("stat_cold", "/s", scale.files, self._stat, cold=True),
            Step("stat_warm", "/s", scale.files, self._stat),
            Step("list_cold", "/s", scale.files, self._list, cold=True),
            Step("unlink", "/s", scale.files, self._unlink),
            Step("small_write_8k", "/s", scale.files, self._write_small),
            Step("small_read_8k_cold", "/s", scale.files, self._read_small, cold=True),
            Step("tree_copy", "files/s", copied, self._copy_tree),
        ]

    def drop_caches(self) -> bool:
        """Empty the caches as far as this user may; True if the kernel's were emptied too."""
        os.sync()
        with contextlib.suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("3")
            return True
        with contextlib.suppress(OSError), _opened(self._big, os.O_RDONLY) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return False

    def _write_big(self) -> None:
        with _opened(self._big, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) as descriptor:
            for _ in range(self._scale.size_mib):
                _write_all(descriptor, self._chunk)
            os.fsync(descriptor)

    def _read_big(self) -> None:
        with _opened(self._big, os.O_RDONLY) as descriptor:
            while os.read(descriptor, _CHUNK):
                pass

    def _offsets(self, count: int) -> list[int]:
        pages = self._scale.size_mib * _CHUNK // _PAGE
        places = random.Random(_SEED)  # noqa: S311 - repeatable places, no secret
        return [places.randrange(pages) * _PAGE for _ in range(count)]

    def _read_randomly(self) -> None:
        with _opened(self._big, os.O_RDONLY) as descriptor:
            for offset in self._offsets(self._scale.random_reads):
                os.pread(descriptor, _PAGE, offset)

    def _write_randomly(self) -> None:
        with _opened(self._big, os.O_WRONLY) as descriptor:
            for offset in self._offsets(self._scale.random_writes):
                os.pwrite(descriptor, self._chunk[:_PAGE], offset)
            os.fsync(descriptor)

    def _write_synchronously(self) -> None:
        with _opened(self._synchronous, os.O_CREAT | os.O_WRONLY) as descriptor:
            for _ in range(self._scale.synchronous_writes):
                _write_all(descriptor, self._chunk[:_PAGE])
                os.fdatasync(descriptor)

    def _names(self, parent: Path) -> list[str]:
        return [f"{parent}/file-{number:06}" for number in range(self._scale.files)]

    def _create(self) -> None:
        self._many.mkdir()
        for name in self._names(self._many):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))

    def _stat(self) -> None:
        for name in self._names(self._many):
            os.stat(name)

    def _list(self) -> None:
        with os.scandir(self._many) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)

    def _unlink(self) -> None:
        for name in self._names(self._many):
            os.unlink(name)

    def _write_small(self) -> None:
        self._small.mkdir()
        content = self._chunk[:_SMALL]
        for name in self._names(self._small):
            with open(name, "wb", buffering=0) as file:
                file.write(content)

    def _read_small(self) -> None:
        for name in self._names(self._small):
            with open(name, "rb", buffering=0) as file:
                file.read()

    def _copy_tree(self) -> None:
        for number in range(self._scale.tree_copies):
            for relative, content in self._tree:
                target = self._trees / str(number) / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                os.utime(target, (0, 0))
                target.chmod(0o640)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a mounted filesystem",
        description=(
            "Measure how fast DIR is: large and small files, random access, names. Uses a new "
            "directory below DIR and removes it. As root, caches are emptied before cold steps."
        ),
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to measure")
    parser.add_argument(
        "--size-mib",
        type=int,
        default=512,
        metavar="N",
        help="size of the large file (default 512)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and leave the directory as it was."""
    directory: Path = arguments.directory
    size_mib: int = arguments.size_mib
    if not 16 <= size_mib <= 1 << 20:
        raise UsageError(f"--size-mib must be 16 to {1 << 20}, not {size_mib}")
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    try:
        results, dropped = measure(directory, size_mib, quiet=arguments.json)
    except OSError as error:
        raise DwfsError(f"can't measure {directory}: {error.strerror or error}") from None
    if not dropped:
        warn("not root: cold figures may come from the kernel's cache of the disks below")
    if arguments.json:
        rates = {step.name: round(rate, 1) for step, rate in results}
        print(json.dumps({**rates, "caches_dropped": dropped}))
    else:
        rows = [[step.name.replace("_", " "), f"{rate:,.0f}", step.unit] for step, rate in results]
        print(render_table(["step", "rate", "unit"], rows, {1}))
    return 0


def measure(
    directory: Path, size_mib: int, *, quiet: bool
) -> tuple[list[tuple[Step, float]], bool]:
    """Every step and its rate, and whether the kernel's caches could be emptied. Raises OSError."""
    space = os.statvfs(directory)
    needed = size_mib * _CHUNK * _SPACE_FACTOR
    if space.f_bavail * space.f_frsize < needed:
        raise NoSpaceError(f"{directory} has less than {needed >> 20} MiB free; choose --size-mib")
    home = Path(tempfile.mkdtemp(prefix="dwfs-bench-", dir=directory))
    progress = ProgressLine("measuring", quiet=quiet)
    try:
        small, full = Scale(16, 100, 100, 10, 100, 1), Scale(size_mib, 2000, 2000, 200, 2000, 4)
        (home / "warm-up").mkdir()
        for step in Workload(home / "warm-up", small).steps():
            step.work()
        (home / "measured").mkdir()
        workload, results, dropped = Workload(home / "measured", full), [], True
        steps = workload.steps()
        for number, step in enumerate(steps):
            progress.update(number, len(steps), "steps")
            if step.cold:
                dropped = workload.drop_caches()
            started = time.perf_counter()
            step.work()
            results.append((step, step.amount / (time.perf_counter() - started)))
        return results, dropped
    finally:
        progress.close()
        shutil.rmtree(home, ignore_errors=True)


def _source_files() -> Iterator[tuple[str, bytes]]:
    """Relative path and content of real source files: the running Python's own packages."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in _TREE_PACKAGES:
        for path in sorted((library / package).rglob("*.py")):
            yield str(path.relative_to(library)), path.read_bytes()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
