"""How near is what sketches say, for how many bytes, and are their bounds both true and narrow?

A line for each structure and stream, beside the figure that its paper gives and beside Apache DataSketches
(`datasketches`, of the `test` extra; the line says so where it is missing) on the same stream:

rms      root mean square of the relative error, estimate / truth - 1
bytes    as exported or serialised; the table of a count-min sketch
MVP      memory-variance product: bits times the square of rms (Ertl, "UltraLogLog", 2023): what a structure
         has for its kind, however large it is made. Comparable between lines of one stream only where the
         error does not depend on the data, as for distinct counts
bounds   (upper - lower) / estimate, median and 99th percentile, and the share of true values within them

DataSketches' sketches know no time: they answer for the whole stream only, ours for every window of the view,
and so the bytes of a window's line are those of the whole. Not measured: speed, which bench_distinct.py,
bench_countmin.py and bench_top.py do.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benches import workload
from benches.bench_countmin import DELTA, N_BATCH, START_MS, stream
from benches.bench_countmin import WINDOWS_MS as COUNTMIN_WINDOWS_MS
from benches.bench_distinct import KEEP_MS, mixed
from benches.bench_top import SETTINGS, Adds, Values
from featurestore.core.countmin import CountminSketch
from featurestore.core.distinct import DistinctCounters
from featurestore.core.top import Tops

try:
    import datasketches
except ImportError:
    datasketches = None

MISSING = "" if datasketches else "; WITHOUT DataSketches, which is not installed"
SIGMAS = 2  # of DataSketches' bounds: 95.4 %; ours are 1.96 of them, made wider


class Said:
    """What one structure said of many values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sizes: list[int] = []
        self._said: list[NDArray[np.float64]] = []  # [n, 4]: truth, estimate, lower, upper

    def add(self, n_bytes: int, truths: Any, estimates: Any, lower: Any, upper: Any) -> None:
        self.sizes.append(n_bytes)
        self._said.append(np.column_stack([np.atleast_1d(x) for x in (truths, estimates, lower, upper)]))

    def line(self, promised: str) -> str:
        truths, estimates, lower, upper = np.concatenate(self._said).T
        rms, n_bytes = float(np.sqrt(np.mean((estimates / truths - 1) ** 2))), np.mean(self.sizes)
        widths = (upper - lower) / estimates
        return (
            f"{self.name}: {n_bytes:,.0f} B, rms {100 * rms:.3g}%, MVP {8 * n_bytes * rms * rms:.3g}, bounds "
            f"{np.median(widths):.2%} wide, p99 {np.percentile(widths, 99):.2%}, hold "
            f"{np.mean((lower <= truths) & (truths <= upper)):.2%} ({promised})"
        )

    def checksum(self) -> int:
        return zlib.crc32(np.concatenate(self._said).tobytes())


def theirs(name: str, lg_k: int) -> Any:
    if name == "CPC":
        return datasketches.cpc_sketch(lg_k)
    return datasketches.hll_sketch(lg_k, datasketches.tgt_hll_type.HLL_4)


@pytest.mark.parametrize("n", [1_000, 10_000, 100_000, 1_000_000])
def bench_distinct(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None], n: int
) -> None:
    """Streams of n different values: all of it, and the last tenth of its time."""
    n_trials = min(max(2, size(100_000, 60_000_000) // n), size(20, 400))
    windows = np.array([n * 10, KEEP_MS], np.int64)
    ours = {(lg_m, w): Said(f"matrix {1 << lg_m}, {w}") for lg_m in (9, 11) for w in ("a tenth", "all")}
    # As many registers, and twice as many: HLL's error is then about that of the matrix.
    others = {
        (name, lg_k): Said(f"DataSketches {name} {1 << lg_k}")
        for name in ("HLL_4", "CPC")
        for lg_k in (9, 10)
    }

    def run() -> None:
        rng = np.random.default_rng(n)
        for _ in range(n_trials):
            numbers = rng.integers(0, 1 << 63, n, dtype=np.uint64)
            times = workload.START_MS + np.arange(n, dtype=np.int64) * 100
            for lg_m in (9, 11):
                sketch = DistinctCounters(keep_ms=KEEP_MS, log2_registers=lg_m, exact_values=512)
                sketch.add(mixed(numbers), times)
                estimates, lower, upper, _ = sketch.read(sketch.now_ms, windows)
                for i, (name, truth) in enumerate((("a tenth", n // 10), ("all", n))):
                    ours[lg_m, name].add(len(sketch.export()), truth, estimates[i], lower[i], upper[i])
            for (name, lg_k), said in others.items() if datasketches else ():
                other = theirs(name, lg_k)
                for number in numbers.tolist():
                    other.update(number)
                compact = getattr(other, "serialize_compact", None) or other.serialize
                bounds = other.get_lower_bound(SIGMAS), other.get_upper_bound(SIGMAS)
                said.add(len(compact()), n, other.get_estimate(), *bounds)

    benchmark.pedantic(run, rounds=1)
    for said in ours.values():
        found(f"{n} values, {n_trials} streams: {said.line('declared 95 %')}; checksum {said.checksum():08x}")
    for said in others.values() if datasketches else ():
        found(f"{n} values, {n_trials} streams: {said.line('declared 95.4 %')}")
    n_sliding = 5 * 512 * np.log(n / 512)
    found(
        f"{n} values, published, rms: matrix 512 {0.649 / 512**0.5:.2%} (Fisher's information, n far above "
        f"m), HLL 512 {1.04 / 512**0.5:.2%}, MVP 6.5 (Flajolet et al. 2007); CPC 512 {0.59 / 512**0.5:.2%} "
        f"(Lang 2017, HIP); with windows: sliding HLL 512 {1.04 / 512**0.5:.2%}, {n_sliding:,.0f} B, MVP "
        f"{8 * n_sliding * 1.04**2 / 512:.3g} (Chabchoub and Hebrail 2010){MISSING}"
    )


def plain_errors(
    sketch: CountminSketch, keys: NDArray[np.uint64], numbers: NDArray[np.int64], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What a sketch of the same cells and slices of a day, without conservative update, says of each key."""
    places = sketch.places(keys).astype(np.int64)
    slice_ms = sketch.shape.slices_ms[3]
    estimates = np.zeros(len(keys))
    for number in np.unique(times // slice_ms):
        seen = numbers[times // slice_ms == number]
        least = np.full(len(keys), np.inf)
        for row in range(places.shape[1]):
            cells = np.bincount(places[seen, row], minlength=int(places[:, row].max()) + 1)
            least = np.minimum(least, cells[places[:, row]])
        estimates += least
    return estimates


def bench_countmin(
    benchmark: BenchmarkFixture, size: Callable[[float, float], float], found: Callable[[str], None]
) -> None:
    """Counts of keys, Zipf 1.05, over a day: of all keys as shares of N, of heavy ones (above epsilon N) as
    the lines above. DataSketches' sketch has as many rows and bytes; its bounds are as it serves them.
    """
    n, n_keys, epsilon = int(size(20_000, 10_000_000)), int(size(2_000, 1_000_000)), size(1e-2, 2.5e-5)
    sketch = CountminSketch(epsilon, DELTA, COUNTMIN_WINDOWS_MS)
    keys, numbers = stream(n, n_keys)
    times = START_MS + np.arange(n, dtype=np.int64) // 3  # an hour at --headline

    def fill() -> None:
        for lo in range(0, n, N_BATCH):
            sketch.add(keys[numbers[lo : lo + N_BATCH]], times[lo : lo + N_BATCH])

    benchmark.pedantic(fill, rounds=1)
    truths = np.bincount(numbers, minlength=n_keys).astype(np.float64)
    replies = sketch.read(keys, np.full(n_keys, times[-1]), [86_400_000])[:, 0]
    bound, n_bytes = float(replies["bound"][0]), sketch.shape.bytes
    heavy = truths > bound
    assert replies["estimate"].min() >= 0
    assert (replies["estimate"] >= truths).all()

    def say(name: str, estimates: Any, lower: Any, upper: Any, promised: str) -> None:
        of_heavy = Said(name)
        of_heavy.add(n_bytes, truths[heavy], estimates[heavy], lower[heavy], upper[heavy])
        over = estimates - truths
        found(
            f"{of_heavy.line(promised)}, {heavy.sum()} keys above epsilon N; all {n_keys}, N {n}: over by "
            f"{over.mean():.2f}, p99 {np.percentile(over, 99):.0f}, most {over.max():.0f}, rms "
            f"{np.sqrt(np.mean(over**2)) / bound:.3f} of the published bound e N / width = {bound:.0f}, "
            f"above which are {np.mean(over > bound):.5f}, at most {DELTA} (Cormode and Muthukrishnan "
            f"2005); bounds hold {np.mean((lower <= truths) & (truths <= upper)):.3%}, "
            f"{np.median(upper - lower):.0f} wide; checksum {of_heavy.checksum():08x}"
        )

    ours = (replies["estimate"], replies["lower"], replies["estimate"])
    say("conservative, five windows", *ours, f"upper certain, lower {1 - DELTA:.0%}")
    plain = plain_errors(sketch, keys, numbers, times)
    say(
        "plain, same cells",
        plain,
        np.maximum(plain - bound, 0),
        plain,
        f"upper certain, lower {1 - DELTA:.0%}",
    )
    if datasketches is None:
        found(f"counts{MISSING}")
        return
    other = datasketches.count_min_sketch(sketch.shape.depth, n_bytes // sketch.shape.depth // 8)
    their_keys = keys[:, 0].astype(np.int64).tolist()
    for number in numbers.tolist():
        other.update(their_keys[number])
    estimates, lower, upper = (
        np.array([ask(key) for key in their_keys])
        for ask in (other.get_estimate, other.get_lower_bound, other.get_upper_bound)
    )
    say("DataSketches count_min, no windows", estimates, lower, upper, "as served")


def bench_top(
    benchmark: BenchmarkFixture, size: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    """What is said of the true ten heaviest values of one key, Zipf 1.1: in the last tenth of the stream, and
    in all of it. Ours are estimates between bounds, theirs are upper bounds."""
    n_events = size(20_000, 1_000_000)
    values = Values.of(size(2_000, 100_000))
    drawn = values.draw(np.random.default_rng(9), n_events)
    times = workload.START_MS + np.arange(n_events, dtype=np.int64)
    adds = Adds.of(np.zeros(n_events, np.int64), drawn, values, times)
    tops = benchmark.pedantic(lambda: Tops(1, **SETTINGS), rounds=1)
    adds.into(tops)
    windows = tops.read(0, int(times[-1]), 0, np.array([n_events // 10, 10**15], np.int64))
    for window, part, name in zip(
        windows, (drawn[-(n_events // 10) :], drawn), ("a tenth", "all"), strict=True
    ):
        listed = {int(value.text[1:]): value for value in window.listed if value.text}
        heaviest = Counter(part.tolist()).most_common(10)
        said = Said(f"ours of all windows, {name}")
        for which, truth in heaviest:
            value = listed.get(which)
            bounds = (value.lower, value.upper) if value else (0, window.rest_upper)
            said.add(tops.block_bytes(0), truth, value.estimate if value else bounds[1] / 2, *bounds)
        found(
            f"ten heaviest of {part.size:,} events: {said.line('certain')}, {len(heaviest)} of which "
            f"{sum(which in listed for which, _ in heaviest)} listed; checksum {said.checksum():08x}"
        )
    published = f"published: over by at most N / counters, {1 / SETTINGS['n_counters']:.2%} of N"
    if datasketches is None:
        found(f"ten heaviest, {published} (Metwally et al. 2005){MISSING}")
        return
    heaviest = Counter(drawn.tolist()).most_common(10)
    for lg_max_k in (10, 11, 12):
        sketch = datasketches.frequent_strings_sketch(lg_max_k)
        for which in drawn.tolist():
            sketch.update(f"t{which:09d}")
        said = Said(f"DataSketches frequent items 2^{lg_max_k}, all")
        for which, truth in heaviest:
            text = f"t{which:09d}"
            bounds = sketch.get_lower_bound(text), sketch.get_upper_bound(text)
            said.add(len(sketch.serialize()), truth, sketch.get_estimate(text), *bounds)
        found(
            f"ten heaviest of {n_events:,} events: {said.line('certain')}; {published} (Metwally et al. 2005)"
        )
