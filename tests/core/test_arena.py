"""Are blocks apart whatever was freed before, and does what is freed serve every size and go back?

The oracle is a set of intervals: blocks in use and free blocks tile each chunk, no two free ones touch, and
no block is written to by another's owner.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from featurestore.core.arena import Blocks

CHUNK_UNITS, FIRST_UNIT = 8192, 64
CHUNK_BYTES = 128 << 10
BIG_BYTES = 64 << 10
MOST_WAITING, MOST_WAITING_UNITS = 256, 2048


class Model:
    """What is in use, and what each step must leave."""

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.used: dict[int, int] = {}  # handle → bytes

    def alloc(self, sizes: list[int]) -> list[int]:
        handles = [int(h) for h in self.blocks.alloc(np.array(sizes, np.uint64))]
        assert not self.used.keys() & set(handles), "a block was given twice"
        self.used.update(zip(handles, sizes, strict=True))
        return handles

    def free(self, handles: list[int]) -> None:
        sizes = np.array([self.used.pop(handle) for handle in handles], np.uint64)
        assert self.blocks.free(np.array(handles, np.uint32), sizes) == 0, "another's block was written to"

    def check(self, *, settled: bool = True) -> None:
        """settled: what was freed has joined its neighbours; else a few blocks have not, and are nowhere."""
        if settled:
            self.blocks.settle()
        pieces: dict[int, list[tuple[int, int, bool]]] = defaultdict(list)
        big = waiting = 0
        for handle, n_bytes in self.used.items():
            if n_bytes > BIG_BYTES - 16:  # the sanitized build's gap may make it one of the big
                big += n_bytes
                continue
            pieces[handle >> 13].append((handle & 8191, Blocks.units(n_bytes), False))
        for handle, units in self.blocks.free_blocks():
            pieces[handle >> 13].append((handle & 8191, units, True))
        for chunk, found in pieces.items():
            at, before_is_free = FIRST_UNIT, False
            for unit, units, is_free in sorted(found):
                assert unit == at or (unit > at and not settled), (
                    f"chunk {chunk}: units {at} to {unit} are lost or given twice"
                )
                if unit > at:
                    waiting += unit - at
                    before_is_free = False
                assert not (is_free and before_is_free), (
                    f"chunk {chunk}: two free blocks side by side at {unit}"
                )
                at, before_is_free = unit + units, is_free
            assert at == CHUNK_UNITS or (at < CHUNK_UNITS and not settled)
            waiting += CHUNK_UNITS - at
            assert not (settled and len(found) == 1 and found[0][2]), (
                f"chunk {chunk} is all free and was kept"
            )
        assert waiting <= MOST_WAITING_UNITS
        small = sum(Blocks.units(n) * 16 for n in self.used.values() if n <= BIG_BYTES - 16)
        assert small + big <= self.blocks.used_bytes <= small + big + 4096 * (big // BIG_BYTES + 1)


def sizes_of(rng: np.random.Generator, kind: str, n: int) -> list[int]:
    if kind == "rows":
        return [int(x) for x in rng.choice([32, 48, 16, 24, 64, 0, 1], n)]
    if kind == "logs":
        return [int(16 * x) for x in rng.integers(1, 140, n)]
    sizes = (2 ** rng.uniform(0, 16, n)).astype(int)
    # Just where a block becomes a mapping of its own is left out: the sanitized build has that elsewhere.
    return [int(x) for x in np.where((sizes > BIG_BYTES - 16) & (sizes <= BIG_BYTES), BIG_BYTES - 16, sizes)]


@pytest.mark.parametrize("kind", ["rows", "logs", "all"])
@pytest.mark.parametrize("seed", [1, 2])
def test_blocks_never_overlap_and_free_neighbours_are_one_after_every_step(kind: str, seed: int) -> None:
    rng = np.random.default_rng((seed, len(kind)))
    model = Model()
    for step in range(400):
        handles = list(model.used)
        # It grows, shrinks and is all but emptied by turns.
        if handles and rng.random() < (0.35, 0.65, 0.5, 0.9)[step // 100]:
            model.free(
                [int(h) for h in rng.choice(handles, min(len(handles), int(rng.integers(1, 12))), False)]
            )
        else:
            model.alloc(sizes_of(rng, kind, int(rng.integers(1, 12))))
        model.check(settled=rng.random() < 0.5)
    model.free(list(model.used))
    model.check()
    assert model.blocks.used_bytes == 0 and model.blocks.free_blocks() == []


def test_memory_that_was_freed_serves_every_other_size() -> None:
    model = Model()
    held = 0
    for n_bytes in (64, 2_000, 48, 30_000, 112, 16, 60_000, 32):
        n = 2_000_000 // n_bytes
        handles = model.alloc([n_bytes] * n)
        held = max(held, model.blocks.held_bytes)
        model.free(handles)
    # 60,000 bytes go into a chunk twice.
    assert held < 2_000_000 * 1.15 + (2 << 20)


def test_what_was_freed_last_serves_its_own_size_first() -> None:
    model = Model()
    first, second, _ = model.alloc([100, 100, 100])
    for handle in (second, first):
        model.free([handle])
        assert model.alloc([100]) == [handle]


@pytest.mark.parametrize("n_bytes", [0, 48, 900])
def test_few_small_blocks_wait_to_join_their_neighbours(n_bytes: int) -> None:
    """One stays in use, so that its chunk does; the others are freed in no order."""
    model = Model()
    units = Blocks.units(n_bytes)
    n = (CHUNK_UNITS - FIRST_UNIT) // units
    kept, *handles = model.alloc([n_bytes] * n)
    model.free([handles[i] for i in np.random.default_rng(n).permutation(n - 1)])
    joined = sum(units for _, units in model.blocks.free_blocks())
    waiting = CHUNK_UNITS - FIRST_UNIT - units - joined
    assert 0 < waiting <= min(MOST_WAITING * units, MOST_WAITING_UNITS)
    assert kept >> 13 == handles[0] >> 13
    model.check()


def test_what_waits_serves_another_size_before_a_new_chunk_is_taken() -> None:
    model = Model()
    units = Blocks.units(48)
    handles = model.alloc([48] * ((CHUNK_UNITS - FIRST_UNIT) // units))
    held = model.blocks.held_bytes
    model.free(sorted(handles)[:200])
    model.alloc([150 * units * 16])  # a good fit, not the best: so much of what they are together
    assert model.blocks.held_bytes == held
    model.check()


@pytest.mark.parametrize("n_bytes", [240, 3_000, 50_000, 70_000])
def test_all_that_was_freed_is_given_back(n_bytes: int) -> None:
    model = Model()
    handles = model.alloc([n_bytes] * (48_000_000 // n_bytes))  # past where slabs become huge pages
    assert model.blocks.held_bytes > 48_000_000
    order = np.random.default_rng(7).permutation(len(handles))
    model.free([handles[i] for i in order])
    model.blocks.settle()
    assert model.blocks.used_bytes == 0
    assert model.blocks.held_bytes <= 2 << 20 and model.blocks.mapped_bytes <= 2 << 20


def test_one_block_in_each_chunk_keeps_that_chunk_and_not_its_slab() -> None:
    model = Model()
    handles = model.alloc([1_000] * 60_000)
    chunks = model.blocks.held_bytes // CHUNK_BYTES
    kept = handles[:: 60_000 // 40]
    model.free(sorted(set(handles) - set(kept)))
    model.check()
    # A few wait for whoever asks next: a sixteenth of what was in use, and 16.
    most = (40 + chunks // 16 + 16) * CHUNK_BYTES
    assert len(kept) == 40 and model.blocks.held_bytes <= most < chunks * CHUNK_BYTES / 4
    model.alloc([1_000] * 4_000)
    model.check()
    assert model.blocks.held_bytes <= most, "new blocks fill what is held"
    model.free(list(model.used))
    model.blocks.settle()
    assert model.blocks.held_bytes <= 2 << 20
