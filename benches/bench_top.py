"""How fast are heaviest values kept and read, and what do they cost? (How near: bench_accuracy.py.)

updates   Tops.add on one thread: skewed keys (Zipf 0.99), each with skewed values (Zipf 1.1), memory fetched
          ahead as a shard does it. CPU time of the thread. Not measured: hashing, the row around it. Then the
          bytes of all blocks per key, and of the hottest.
read      a hot key's lists over five windows.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from featurestore.core.hashing import sip64
from featurestore.core.top import Tops

SECRET = bytes(range(16))
N_VALUES = 100_000
VALUE_EXPONENT = 1.1
WINDOWS_MS = np.array([600_000, 3_600_000, 21_600_000, 86_400_000, 604_800_000], np.int64)
KEEP_MS = 7 * workload.DAY_MS + 3_600_000
SETTINGS = {"k": 10, "n_counters": 96, "exact_events": 256, "max_error": 0.1}


@dataclass(frozen=True)
class Values:
    """Texts `t000000000` on, with their hashes; which of them, Zipf with exponent 1.1."""

    hashes: NDArray[np.uint64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, n_values: int) -> Values:
        weights = np.arange(1, n_values + 1) ** -VALUE_EXPONENT
        hashes = [sip64(SECRET, b"t%09d" % i) for i in range(n_values)]
        return cls(np.array(hashes, np.uint64), np.cumsum(weights / weights.sum()))

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(self.shares, rng.random(n)), self.hashes.size - 1)


@dataclass(frozen=True)
class Adds:
    """Arguments of Tops.add."""

    which: NDArray[np.uint32]
    hashes: NDArray[np.uint64]
    offsets: NDArray[np.uint32]
    texts: NDArray[np.uint8]
    times_ms: NDArray[np.int64]
    horizons_ms: NDArray[np.int64]

    @classmethod
    def of(
        cls, keys: NDArray[np.int64], drawn: NDArray[np.int64], values: Values, times_ms: NDArray[np.int64]
    ) -> Adds:
        texts = workload.key_texts(drawn, "t")
        return cls(
            keys.astype(np.uint32),
            values.hashes[drawn],
            np.asarray(texts.offsets),
            np.asarray(texts.data),
            times_ms,
            times_ms - KEEP_MS,
        )

    def into(self, tops: Tops) -> None:
        lost = tops.add(self.which, self.hashes, self.offsets, self.texts, self.times_ms, self.horizons_ms)
        assert lost == 0


@pytest.fixture(scope="module")
def values() -> Values:
    return Values.of(N_VALUES)


def bench_updates(
    benchmark: BenchmarkFixture,
    size: Callable[[int, int], int],
    found: Callable[[str], None],
    values: Values,
) -> None:
    n_keys, n_events = size(2_000, 1_000_000), size(4_000, 1 << 20)
    tops = Tops(n_keys, **SETTINGS)
    zipf = workload.Zipf(n_keys)
    rng = np.random.default_rng(7)
    seconds: list[float] = []
    done = 0
    # Every key has three events before.
    for _ in range(3):
        times = workload.START_MS - workload.DAY_MS + np.arange(n_keys, dtype=np.int64)
        Adds.of(rng.permutation(n_keys), values.draw(rng, n_keys), values, times).into(tops)
    all_cold = sum(tops.block_bytes(i) for i in range(n_keys)) / n_keys

    def setup() -> tuple[tuple[Adds], dict[str, object]]:
        nonlocal done
        times = workload.START_MS + (done + np.arange(n_events, dtype=np.int64)) // 2
        done += n_events
        return (Adds.of(zipf.draw(rng, n_events), values.draw(rng, n_events), values, times),), {}

    def add(adds: Adds) -> None:
        began = time.thread_time()
        adds.into(tops)
        seconds.append(time.thread_time() - began)

    n_warm = size(0, 3)
    benchmark.pedantic(add, setup=setup, warmup_rounds=n_warm, rounds=size(2, 7))
    rate = n_events / median(seconds[n_warm:])
    sizes = [tops.block_bytes(i) for i in range(n_keys)]
    hottest = int(np.argmax(sizes))
    checksum = zlib.crc32(b"".join(tops.export(i) for i in range(min(n_keys, 1_000))))
    benchmark.extra_info.update(updates_per_s=rate, bytes_per_key=sum(sizes) / n_keys)
    found(
        f"{rate / 1e6:.2f} M updates/s of one core; bytes per key: {all_cold:.1f} with three events each, "
        f"then {sum(sizes) / n_keys:.1f} on average, {max(sizes)} at most, with (RAW, slots, entries, "
        f"counters, bytes of texts) {tops.counts(hottest)}; arena {tops.used_bytes / n_keys:.1f}; "
        f"checksum {checksum:08x}"
    )


def bench_read(
    benchmark: BenchmarkFixture,
    size: Callable[[int, int], int],
    found: Callable[[str], None],
    values: Values,
) -> None:
    n_events, n_reads = size(5_000, 1_000_000), size(20, 5_000)
    tops = Tops(1, **SETTINGS)
    rng = np.random.default_rng(8)
    times = workload.START_MS + np.arange(n_events, dtype=np.int64) * (6 * workload.DAY_MS // n_events)
    Adds.of(np.zeros(n_events, np.int64), values.draw(rng, n_events), values, times).into(tops)
    at_ms = int(times[-1])
    seconds: list[float] = []

    def read() -> float:
        began = time.thread_time()
        total = tops.time_reads(0, at_ms, at_ms - KEEP_MS, WINDOWS_MS, n_reads)
        seconds.append(time.thread_time() - began)
        return total

    total = benchmark.pedantic(read, rounds=size(2, 7), warmup_rounds=1)
    micros = median(seconds) / n_reads * 1e6
    benchmark.extra_info.update(read_us=micros)
    found(
        f"{micros:.1f} us for the lists of {WINDOWS_MS.size} windows of a key of {n_events:,} events and "
        f"{tops.block_bytes(0):,} bytes {tops.counts(0)}; checksum {zlib.crc32(repr(total).encode()):08x}"
    )
