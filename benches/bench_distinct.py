"""How fast does one core count distinct values, and in how many bytes? (How near: bench_accuracy.py.)

`updates`: additions to many keys whose blocks of values are behind an arena, as in a shard, prefetched
ahead. Keys are skewed, and so are values (both Zipf 0.99 over a million), so that counters are a few values,
hundreds, and large sketches at once. `new values`: the values are not skewed, so that nearly every addition
is of a new one: the most that sets can be made to grow. `reads`: as `updates`, and the key is read over five
windows at each event. Thread CPU time; the counters were filled before. Not measured: hashing, the look-up of
the row, the sequencer.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from featurestore.core.distinct import DistinctCounters

KEEP_MS = 7 * workload.DAY_MS
WINDOWS_MS = np.array([600_000, 3_600_000, 6 * 3_600_000, workload.DAY_MS, KEEP_MS], np.int64)
BATCH = 65_536
N_VALUES = 1_000_000


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of numbers that spreads as well as a keyed one (the finalizer of SplitMix64)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def additions(
    n: int, n_keys: int, start: int, *, skewed: bool
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32]]:
    """Hashes, times and keys of n events, two to a millisecond from START_MS + start / 2 on."""
    rng = np.random.default_rng((7, start))
    keys = workload.Zipf(n_keys).draw(rng, n)
    values = workload.Zipf(N_VALUES).draw(rng, n) if skewed else rng.integers(0, N_VALUES, n)
    hashes = mixed(keys.astype(np.uint64) << np.uint64(32) | values.astype(np.uint64))
    times = workload.START_MS + (start + np.arange(n, dtype=np.int64)) // 2
    # Which key is hot says nothing about where it is.
    places = (keys.astype(np.uint64) * np.uint64(2_654_435_761) % np.uint64(n_keys)).astype(np.uint32)
    return hashes, times, places


@pytest.mark.parametrize("what", ["updates", "new values", "reads"])
def bench_distinct(
    benchmark: BenchmarkFixture,
    size: Callable[[int, int], int],
    found: Callable[[str], None],
    what: str,
) -> None:
    n_keys, n_fill, rounds = size(1_000, 1_000_003), size(20_000, 1 << 24), size(2, 5)
    n_events = size(4_000, 1 << (18 if what == "reads" else 21))
    skewed = what != "new values"
    counters = DistinctCounters(n_keys, keep_ms=KEEP_MS)
    done = 0
    while done < n_fill:
        counters.add(*additions(min(1 << 20, n_fill - done), n_keys, done, skewed=skewed))
        done += min(1 << 20, n_fill - done)
    seconds: list[float] = []
    checksum = 0.0

    def setup() -> tuple[tuple[object, ...], dict[str, object]]:
        nonlocal done
        done += n_events
        return additions(n_events, n_keys, done - n_events, skewed=skewed), {}

    def run(hashes: NDArray[np.uint64], times: NDArray[np.int64], keys: NDArray[np.uint32]) -> None:
        nonlocal checksum
        began = time.thread_time()
        for lo in range(0, n_events, BATCH):
            part = slice(lo, lo + BATCH)
            if what != "reads":
                counters.add(hashes[part], times[part], keys[part])
            else:
                checksum += counters.observe(hashes[part], times[part], WINDOWS_MS, keys[part])[0].sum()
        seconds.append(time.thread_time() - began)

    benchmark.pedantic(run, setup=setup, rounds=rounds)
    rate = n_events / median(seconds)
    block_bytes = np.array([counters.block_bytes(key) for key in range(0, n_keys, max(1, n_keys // 50_000))])
    bytes_ = zlib.crc32(b"".join(counters.export(key) for key in range(0, n_keys, n_keys // 100)))
    benchmark.extra_info.update(per_s=rate, used_bytes=counters.used_bytes)
    found(
        f"{rate / 1e6:.2f} M/s of one core; {n_keys} keys, {counters.used_bytes / 1e6:.0f} MB, blocks of "
        f"{np.median(block_bytes):.0f} bytes median, {np.percentile(block_bytes, 99):.0f} at 99 %, "
        f"{block_bytes.max()} at most of these; checksum {bytes_ ^ int(checksum):08x}"
    )


def bench_bytes_of_few_values(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    """What a distinct feature adds to a key: its values' block, and 8 bytes of head in the row."""
    n_keys = size(2_000, 1_000_000)
    keys = np.arange(n_keys, dtype=np.uint32)
    taken = []

    def run() -> None:
        counters = DistinctCounters(n_keys, keep_ms=KEEP_MS)
        for n in range(1, 11):
            hashes = mixed(keys.astype(np.uint64) << np.uint64(8) | np.uint64(n))
            counters.add(hashes, np.full(n_keys, workload.START_MS + n, np.int64), keys)
            taken.append((n, counters.block_bytes(0), counters.used_bytes / n_keys))

    benchmark.pedantic(run, rounds=1)
    found(
        f"{n_keys} keys, values: block (and all that is held, per key): "
        + ", ".join(f"{n}: {block} ({used:.0f})" for n, block, used in taken)
        + f", checksum {sum(int(used * n_keys) for _, _, used in taken):x}"
    )
