"""Random histories of a segment store against a dictionary."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dwfs import limits
from dwfs.disk import SegmentStore
from dwfs.types import ShardKey
from tests.contract.store_harness import Harness, shard_key

STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 7), st.integers(0, 3_000)),
    st.tuples(st.just("put"), st.integers(0, 7), st.integers(0, 40)),
    st.tuples(st.just("delete"), st.integers(0, 7), st.just(0)),
    st.tuples(
        st.sampled_from(["sync", "commit", "stop", "kill", "rebuild"]), st.just(0), st.just(0)
    ),
)


class Model:
    """What the store should hold, and which shards a kill may bring back."""

    def __init__(self) -> None:
        self.shards: dict[ShardKey, bytes] = {}
        self.restless: set[ShardKey] = set()  # deleted or replaced; remains may be on the disk


async def check(store: SegmentStore, model: Model) -> None:
    """The store is the model, but for orphans, which are deleted as the mount would do."""
    keys = store.keys(None, 1_000)
    orphans = [key for key in keys if key not in model.shards]
    assert set(orphans) <= model.restless
    await store.delete(orphans)
    assert store.keys(None, 1_000) == sorted(model.shards, key=lambda key: key.stripe)
    for key, payload in model.shards.items():
        assert await store.read_verified(key) == (b"head", payload)
        assert await store.read(key, 0, 9_999) == payload
    accounts = store._ledger.index.accounts()
    live = dict.fromkeys(accounts, 0)
    for _, place in store._ledger.index.everything():
        live[place.segment] += 1
    assert live == {number: account.live_records for number, account in accounts.items()}


async def play(root: Path, steps: list[tuple[str, int, int]]) -> None:
    model = Model()
    harness = Harness(root)
    store = await harness.open()
    for count, (step, number, size) in enumerate(steps):
        key = shard_key(number)
        if step == "put":
            payload = bytes([count % 255 + 1]) * size
            if key in model.shards:
                model.restless.add(key)
            await store.put(key, b"head", memoryview(payload))
            model.shards[key] = payload
        elif step == "delete":
            await store.delete([key])
            if model.shards.pop(key, None) is not None:
                model.restless.add(key)
        elif step == "sync":
            await store.sync()
        elif step == "commit":
            harness.source.commit()
        else:
            if step == "stop":
                await store.close()
            else:
                store._files.close()  # what exit does
                for active in store._writer._segments.active.values():
                    store._files.release(active.file)
            harness.executor.close()
            harness.source.close(commit=step == "stop")
            harness = Harness(root)
            store = await harness.open(trusted=step != "rebuild")
            await check(store, model)
    await check(store, model)
    await store.close()
    harness.executor.close()
    harness.source.close(commit=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=40))
def test_histories(steps: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as root:
        patch.setattr(limits, "SEGMENT_SIZE", 6_000)
        trio.run(play, Path(root), steps)
