"""What every test gets: a seed that a failure prints, and checks that nothing is left behind.

Leaks are looked for after each test and again after each module (whose fixtures live longer):
mounts below pytest's temporary directory, processes that carry this session's mark in their
environment, loop devices whose file is ours, and threads. What is found is removed, so that one
leak fails one test and not those after it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.programs import installed

SESSION_MARK = "DWFS_TEST_SESSION"
SEED_VARIABLE = "DWFS_TEST_SEED"
EVERYTHING_INSTALLED = (
    "DWFS_TEST_PROGRAMS_INSTALLED"  # `./run test` says so: skip no program's tests
)
GRACE_SECONDS = 5.0
OWN_DIRECTORY = pytest.StashKey[Path]()
# Pools of worker threads that live as long as the interpreter, by design of their libraries.
LASTING_THREADS = re.compile(r"^(Trio thread|MainThread|pytest[_-]timeout|asyncio_)")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` makes the tests that can be of any size large."""
    parser.addoption("--long", action="store_true", help="run tests in their larger sizes")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Mark the session, so that its processes can be told from all others; choose the seed.

    The session gets a directory of its own: pytest's shared one is closed to other users again
    whenever another session starts, under the feet of servers that tests run as such a user.
    """
    os.environ[SESSION_MARK] = secrets.token_hex(8)
    if config.option.basetemp is None:
        config.option.basetemp = tempfile.mkdtemp(prefix="dwfs-tests-")
        config.stash[OWN_DIRECTORY] = Path(config.option.basetemp)
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(2**32)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the session's directory, unless a failure may be looked into there."""
    own = session.config.stash.get(OWN_DIRECTORY, None)
    if own is not None and exitstatus != pytest.ExitCode.TESTS_FAILED:
        shutil.rmtree(own, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    """The seed stands at the top of every run."""
    return f"seed: {os.environ[SEED_VARIABLE]} (replay with {SEED_VARIABLE}={os.environ[SEED_VARIABLE]})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what an ordinary user's machine can't run; nothing where `./run test` could install."""
    for item in items:
        if "needs_root" in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        for marker in item.iter_markers("needs_program"):
            (program,) = marker.args
            if installed(program) is None and EVERYTHING_INSTALLED not in os.environ:
                item.add_marker(pytest.mark.skip(reason=f"{program} is not installed"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number for this test's randomness; the same for the same test and session seed."""
    value = random.Random(f"{os.environ[SEED_VARIABLE]} {request.node.nodeid}").randrange(2**32)
    print(f"seed of this test: {value}")
    return value


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether `--long` was given: tests then take the larger of their sizes."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="module", autouse=True)
def no_leaks_in_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The module's own fixtures leave nothing behind."""
    yield from _leak_guard(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def no_leaks(no_leaks_in_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The test leaves nothing behind."""
    yield from _leak_guard(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def no_unexpected_log(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A warning in dwfs' log fails the test, unless `expect_log(pattern)` says that it is meant."""
    yield
    expected = [
        re.compile(pattern)
        for marker in request.node.iter_markers("expect_log")
        for pattern in marker.args
    ]
    unexpected = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.WARNING
        and record.name.split(".")[0] == "dwfs"
        and not any(pattern.search(record.getMessage()) for pattern in expected)
    ]
    if unexpected:
        pytest.fail(f"unexpected warnings in the log: {unexpected}", pytrace=False)


def _leak_guard(base: Path) -> Iterator[None]:
    before = {*_mounts(base), *_processes(), *_loop_devices(base), *_threads()}
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        mounts, processes = _mounts(base) - before, _processes() - before
        devices, threads = _loop_devices(base) - before, _threads() - before
        left = sorted(map(str, (*mounts, *processes, *devices, *threads)))
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    _remove(mounts, processes, devices)
    if left:
        pytest.fail(f"left behind: {', '.join(left)}", pytrace=False)


def _mounts(base: Path) -> set[str]:
    """Mount points below `base`."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(f"{base}/"):
            found.add(f"mount {point}")
    return found


# Processes seen without the mark: never ours later, since a mark is inherited, not gained. Kept so
# that the check costs microseconds for each of thousands of tests.
_strangers: set[str] = set()


def _processes() -> set[str]:
    """Processes of this session, whoever their parent is by now."""
    mark = f"{SESSION_MARK}={os.environ[SESSION_MARK]}".encode()
    present = {name for name in os.listdir("/proc") if name.isdigit()}
    _strangers.intersection_update(present)
    _strangers.add(str(os.getpid()))
    found = set()
    for pid in present - _strangers:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in environment.split(b"\0"):
            found.add(f"process {pid} {b' '.join(words).decode(errors='replace')[:120]}")
        elif environment:  # a zombie's is empty, and so is that of a process about to exec
            _strangers.add(pid)
    return found


def _loop_devices(base: Path) -> set[str]:
    """Loop devices whose backing file is below `base`."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(f"{base}/"):
                found.add(f"loop device /dev/{path.parents[1].name}")
    return found


def _threads() -> set[str]:
    return {
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if not LASTING_THREADS.match(thread.name)
    }


def _remove(mounts: set[str], processes: set[str], devices: set[str]) -> None:
    for text in processes:
        with contextlib.suppress(psutil.Error):
            psutil.Process(int(text.split()[1])).kill()
    for text in sorted(mounts, reverse=True):
        point = text.removeprefix("mount ")
        if subprocess.run(["umount", "-l", point], capture_output=True).returncode != 0:
            subprocess.run(["fusermount3", "-uz", point], capture_output=True)
    for text in devices:
        subprocess.run(["losetup", "-d", text.split()[2]], capture_output=True)
