"""Pools for integration tests. They are closed whatever happens in the test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pools import Pool, open_the_way


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Skip where nothing can be mounted. `./run test` refuses to start there, so it never skips this."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse can't be opened")


@pytest.fixture
def bare_pool(tmp_path: Path) -> Iterator[Pool]:
    """A place for a pool, before `init`."""
    pool = Pool(tmp_path / "pool")
    yield pool
    pool.close()


@pytest.fixture
def pool(bare_pool: Pool) -> Pool:
    """A 4+2 pool on six directories, not mounted."""
    return bare_pool.create()


@pytest.fixture
def mounted(pool: Pool) -> Pool:
    """The pool, mounted."""
    return pool.mount()


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One mounted pool for all tests of a module that only use files."""
    pool = Pool(tmp_path_factory.mktemp("shared") / "pool")
    try:
        open_the_way(pool.mountpoint)
        pool.create().mount()
        yield pool
        pool.umount()
    finally:
        pool.close()


@pytest.fixture
def folder(shared_pool: Pool, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the module's pool."""
    name = re.sub(r"\W+", "_", request.node.name)
    path = shared_pool.mountpoint / name
    path.mkdir(mode=0o755)
    return path
