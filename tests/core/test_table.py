"""Does a look-up end, and cost what a fresh table would, however many keys came and went?

What lies where in a table with linear probing depends on the order; how many keys a bucket has, and how many
went past it, does not: a table that rows left must be in both as one that never had them.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.core.table import Index

SLOTS = 12
HANGS = """
import numpy as np
from featurestore.core.table import Index
rng = np.random.default_rng(5)
index = Index()
keys = rng.integers(1 << 63, size=(40, 2), dtype=np.uint64)
index.insert(keys)
for _ in range(100):
    index.remove(keys)
    keys = rng.integers(1 << 63, size=(40, 2), dtype=np.uint64)
    index.insert(keys)
assert index.find(rng.integers(1 << 63, size=(1000, 2), dtype=np.uint64)) == 0
print("ended")
"""
STORE_HANGS = """
import numpy as np
from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.schema import compile_schema

plan = compile_schema('''
version: 1
name: s
events: {e: {time: {field: ts, unit: ms}, fields: {ip: key}}}
views: {ip: {event: e, key: ip, windows: [10m], features: [count]}}
services: {all: [ip.*]}
''')
state = State(plan, n_shards=1)
for turn in range(200):
    names = [f"{turn}-{i}".encode() for i in range(20)]
    offsets = np.cumsum([0, *map(len, names)]).astype(np.uint32)
    times = np.full(20, 1_000_000 + turn * 700_000, np.int64)
    state.observe(EventBatch(plan.events[0], 0, times, [TextColumn(
        offsets, np.frombuffer(b"".join(names), np.uint8), None)]))
    state.sweep()
assert state.stats()["rows"] < 200
print("ended")
"""


def fresh(rng: np.random.Generator, n: int) -> NDArray[np.uint64]:
    return rng.integers(1 << 64, size=(n, 2), dtype=np.uint64)


def settle(index: Index) -> None:
    """Until its size does not change."""
    while index.move(1):
        pass


def places(keys: NDArray[np.uint64], n_buckets: int) -> list[tuple[int, int]]:
    """(keys, keys that went past) of each bucket, by putting the keys in one after the other."""
    taken, passed = [0] * n_buckets, [0] * n_buckets
    for fp0 in keys[:, 0]:
        at = int(fp0) % n_buckets
        while taken[at] == SLOTS:
            passed[at] += 1
            at = (at + 1) % n_buckets
        taken[at] += 1
    return list(zip(taken, passed, strict=True))


@pytest.mark.parametrize("program", [HANGS, STORE_HANGS], ids=["table", "store"])
def test_a_look_up_of_an_absent_key_ends_after_every_bucket_was_once_full(program: str) -> None:
    ran = subprocess.run(  # in a process of its own: what is looked for is a loop without an end
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "ended\n", ran.stderr


@pytest.mark.parametrize("n_keys", [40, 80, 323, 640])
def test_after_every_removal_the_buckets_are_as_if_the_key_had_never_been_there(n_keys: int) -> None:
    rng = np.random.default_rng(n_keys)
    index = Index()
    keys = fresh(rng, n_keys)
    index.insert(keys)
    for step in range(3 * n_keys):
        if step % 3 == 2 and len(index) < n_keys:
            keys = np.concatenate([keys, fresh(rng, 1)])
            index.insert(keys[-1:])
        else:
            gone = int(rng.integers(len(keys)))
            assert index.remove(keys[gone : gone + 1]) == 1
            keys = np.delete(keys, gone, 0)
        assert index.find(keys) == len(keys) == len(index)
        settle(index)
        buckets = index.buckets()
        assert buckets == places(keys, len(buckets))
        assert index.find(keys) == len(keys) == len(index)
        if not len(keys):
            break
    assert max(index.probes()) <= len(index.buckets())


def test_a_table_that_most_keys_left_becomes_small_again_and_keeps_the_rest() -> None:
    rng = np.random.default_rng(3)
    index = Index()
    keys = fresh(rng, 10_000)
    index.insert(keys)
    settle(index)
    grown = len(index.buckets())
    assert not index.shrink(), "it is needed"
    index.remove(keys[100:])
    while index.shrink():
        settle(index)
    buckets = index.buckets()
    assert 100 < len(buckets) * SLOTS <= 8 * 100 * 32 / 27 and buckets == places(keys[:100], len(buckets))
    assert index.find(keys) == 100
    index.remove(keys)
    while index.shrink():
        settle(index)
    assert len(index.buckets()) == 4 and len(index) == 0
    index.insert(keys)
    assert index.find(keys) == 10_000 and len(index.buckets()) == grown


def moved(index: Index) -> tuple[int, int]:
    """(keys that are still to be moved, keys that went past buckets that have none any more)."""
    old = index.buckets(old=True)
    return sum(n for n, _ in old), sum(past for n, past in old if n == 0)


def test_no_insertion_moves_more_than_a_bucket_and_each_change_ends_before_the_next() -> None:
    rng = np.random.default_rng(11)
    index = Index()
    keys = fresh(rng, 3000)
    for i in range(len(keys)):
        before, n_resized = moved(index)[0], index.n_resized
        index.insert(keys[i : i + 1])
        n_left, n_past = moved(index)
        assert n_past == 0
        if index.n_resized == n_resized:
            assert before - n_left <= 3 * SLOTS, "a bucket, and those that had no place in it"
        else:
            assert before == 0 and index.n_resized == n_resized + 1
            assert i + 1 - n_left <= 3 * SLOTS
    assert index.n_resized > 5 and index.find(keys) == len(keys)


@pytest.mark.parametrize("shrinks", [False, True])
def test_keys_that_come_and_go_while_the_size_changes(shrinks: bool) -> None:
    """Out of either array; afterwards the buckets are as if it had always had its size."""
    rng = np.random.default_rng(12)
    index = Index()
    keys = fresh(rng, 1300)
    index.insert(keys)
    settle(index)
    if shrinks:
        assert index.remove(keys[160:]) == 1140
        keys = keys[:160]
        assert index.shrink()
    n_seen = 0
    while not n_seen or index.buckets(old=True):
        keys = np.concatenate([keys, fresh(rng, 1)])
        index.insert(keys[-1:])
        gone = rng.permutation(len(keys))[: int(rng.integers(1 + (not shrinks)))]
        assert index.remove(keys[gone]) == len(gone)
        keys = np.delete(keys, gone, 0)
        assert index.find(keys) == len(keys) == len(index)
        n_seen += bool(index.buckets(old=True))
        assert index.remove(fresh(rng, 5)) == 0
    assert n_seen > 20
    buckets = index.buckets()
    assert buckets == places(keys, len(buckets))
