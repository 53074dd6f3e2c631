"""The distinct counter against a naive one step by step; laws, bounds, growth, hostile bytes, extremes."""

from __future__ import annotations

import math
import struct
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.distinct import DAY_MS, Naive, cell

from featurestore.core.distinct import DistinctCounters
from featurestore.core.hashing import sip64

KEY = bytes(range(16))
YEAR_1_MS, YEAR_9999_MS = -62_135_596_800_000, 253_402_300_799_999
ERA_MS, ERA_TICKS = 1 << 39, 1 << 31
KEEP_MS = 10_000
KEEP_400_DAYS_MS = 400 * DAY_MS


def hashed(value: int) -> int:
    return sip64(KEY, value.to_bytes(8, "little"))


def u64(*hashes: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(hashes, np.uint64)


def i64(*times: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(times, np.int64)


def random_hashes(rng: np.random.Generator, n: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return rng.integers(0, 1 << 64, n, dtype=np.uint64)


def same_answer(got: Any, owed: tuple[float, float, float, bool], j: int = 0) -> None:
    estimate, lower, upper, certain = (column[j] for column in got)
    if owed[3]:
        assert (estimate, lower, upper, certain) == owed
        return
    assert not certain
    assert estimate == pytest.approx(owed[0], rel=1e-8)
    # Where the bound is within rounding of a whole number, either is right.
    assert abs(lower - owed[1]) <= 1 and abs(upper - owed[2]) <= 1
    assert lower <= estimate <= upper


# -- step by step --------------------------------------------------------------------------------------------

# Values 40..43 are hashes that saturate: no bit set, all, and ranks at and past the last.
ODD_HASHES = {40: 0, 41: (1 << 64) - 1, 42: 1 << 24, 43: (1 << 24) - 1}
STARTS = [0, -1, YEAR_1_MS, YEAR_9999_MS - 50_000, ERA_MS - 3_000, -ERA_MS - 2_000, ERA_TICKS - 5_000]
STARTS += [1_700_000_000_000, 7 * ERA_TICKS * 32 - 100_000]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 43), st.integers(-12_000, 4_000)),
        st.tuples(st.just("add"), st.integers(0, 43), st.integers(0, 300)),
        st.tuples(st.just("burst"), st.integers(100, 180), st.integers(-9_000, 900)),
        st.tuples(st.just("read"), st.integers(-12_000, 12_000), st.integers(1, 12_000)),
        st.tuples(st.sampled_from(["reload", "prune", "clone"]), st.just(0), st.just(0)),
        st.tuples(st.just("advance"), st.sampled_from([1, 5_000, 10_001]), st.just(0)),
        st.tuples(st.just("jump"), st.sampled_from([ERA_TICKS, ERA_TICKS * 3 // 2, ERA_MS]), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("scale", [1, KEEP_400_DAYS_MS // KEEP_MS], ids=["10s", "400d"])
@given(start=st.sampled_from(STARTS), exact_values=st.sampled_from([1, 3, 12, 100]), steps=steps)
@settings(max_examples=120)
def test_every_step_agrees_with_the_naive_counter(
    scale: int, start: int, exact_values: int, steps: list[tuple[str, int, int]]
) -> None:
    """`twin` is never reloaded, cloned or pruned: its bytes must be the same all the same."""
    settings_: dict[str, int] = {
        "exact_values": exact_values,
        "log2_registers": 6,
        "keep_ms": KEEP_MS * scale,
    }
    naive = Naive(**settings_)
    counters, twin = DistinctCounters(2, **settings_), DistinctCounters(1, **settings_)
    for each in (naive, counters, twin):
        each.advance(start)
    for what, a, b in steps:
        if what in ("add", "burst"):
            # A burst is twice as many values as registers: dense ranks, and values that share a cell, later
            # ones at an earlier time.
            values = range(a, a + (130 if what == "burst" else 1))
            hashes = [ODD_HASHES.get(value, hashed(value)) for value in values]
            times = [naive.now_ms + b * scale - (value - a) // 3 for value in values]
            if not YEAR_1_MS <= times[-1] <= times[0] <= YEAR_9999_MS:
                continue
            n_late = sum(not naive.add(hash_, t) for hash_, t in zip(hashes, times, strict=True))
            assert counters.add(u64(*hashes), i64(*times)) == n_late
            assert twin.add(u64(*hashes), i64(*times)) == n_late
        elif what == "advance" or (what == "jump" and naive.now_ms + a <= YEAR_9999_MS):
            now = naive.now_ms + a * (scale if what == "advance" else 1)
            for each in (naive, counters, twin):
                each.advance(now)
        elif what == "reload":
            counters.load(counters.export())
        elif what == "prune":
            counters.prune()
        elif what == "clone":
            counters.clone(0, 1)
            counters.load(bytes(16)[:2] + b"\4" + bytes(13))
            counters.clone(1, 0)
        assert counters.expired() == naive.expired()
        assert counters.export() == twin.export()
        reads = [(naive.now_ms, KEEP_MS * scale), (naive.now_ms, 700 * scale), (naive.now_ms - scale, scale)]
        if what == "read":
            reads.append((naive.now_ms + a * scale, b * scale))
        for at, window in reads:
            got, owed = counters.read(at, i64(window)), naive.read(at, window)
            same_answer(got, owed)
            if owed[3]:
                assert got[1][0] <= naive.truth(at, window) <= got[2][0]


def test_reads_before_the_newest_say_what_is_certain_and_what_is_possible() -> None:
    for exact_values, certain in ((512, True), (1, False)):
        counters = DistinctCounters(keep_ms=KEEP_MS, exact_values=exact_values)
        counters.add(u64(*map(hashed, (1, 2, 3, 1))), i64(1_000, 2_000, 3_000, 4_000))
        estimate, lower, upper, sure = counters.read(3_500, i64(600, 2_000, 5_000))
        # 1 was last seen at 4,000: at 3,500 it may have been in any window, and was in the last one.
        assert lower.tolist() == [1, 2, 2]
        assert np.all(upper >= [2, 3, 3]) and np.all(sure == certain)
        if certain:
            assert upper.tolist() == [2, 3, 3]
            # As much of the time from the window's beginning to 4,000 as is in the window.
            assert estimate.tolist() == [1 + 600 / 1_100, 2 + 2_000 / 2_500, 2 + 5_000 / 5_500]


def test_the_edges_of_a_window() -> None:
    for exact_values in (512, 1):
        counters = DistinctCounters(keep_ms=KEEP_MS, exact_values=exact_values)
        counters.add(u64(*map(hashed, (1, 2, 3))), i64(1_000, 2_000, 3_000))
        estimate, *_ = counters.read(3_000, i64(1, 999, 1_000, 1_001, 1_999, 2_000, 2_001, 9_000))
        assert np.round(estimate).tolist() == [1, 1, 1, 2, 2, 2, 3, 3]
        counters.advance(11_000)
        counters.prune()
        counters.load(counters.export())
        assert round(counters.read(11_000, i64(50_000))[0][0]) == 3  # the horizon is 1,000
        counters.advance(11_001)
        assert round(counters.read(11_001, i64(50_000))[0][0]) == 2


def test_more_windows_than_are_read_at_a_time() -> None:
    rng = np.random.default_rng(1)
    for n in (300, 3_000):
        counters = DistinctCounters(keep_ms=KEEP_MS)
        counters.add(random_hashes(rng, n), np.sort(rng.integers(0, KEEP_MS, n)))
        windows = np.arange(1, 100, dtype=np.int64) * 100
        together = counters.read(counters.now_ms - 7, windows)
        for j, window in enumerate(windows):
            alone = counters.read(counters.now_ms - 7, i64(window))
            assert [column[j] for column in together] == [column[0] for column in alone]


def test_keys_do_not_touch_each_other() -> None:
    """Blocks of one arena grow, move and are used again; each key must be what it is alone."""
    rng = np.random.default_rng(5)
    n_keys = 60
    together = DistinctCounters(n_keys, keep_ms=KEEP_MS, exact_values=300, log2_registers=7)
    alone = [DistinctCounters(keep_ms=KEEP_MS, exact_values=300, log2_registers=7) for _ in range(n_keys)]
    for turn in range(12):
        keys = (rng.random(6_000) ** 4 * n_keys).astype(np.uint32)
        hashes = random_hashes(rng, 2_000)[rng.integers(0, 2_000, keys.size)]
        times = turn * 3_000 + np.sort(rng.integers(0, 3_000, keys.size)) - rng.integers(0, 50, keys.size)
        together.add(hashes, times, keys)
        if turn % 4 == 3:
            together.prune()
        for key in range(n_keys):
            of_key = keys == key
            alone[key].add(hashes[of_key], times[of_key])
            alone[key].advance(together.now_ms)
            assert together.export(key) == alone[key].export()


def test_observe_is_add_and_read_at_each_event() -> None:
    rng = np.random.default_rng(6)
    windows = i64(10, 500, KEEP_MS)
    keys = rng.integers(0, 3, 400).astype(np.uint32)
    hashes = random_hashes(rng, 150)[rng.integers(0, 150, keys.size)]
    times = np.cumsum(rng.integers(0, 80, keys.size)) - rng.integers(0, 2, keys.size) * 11_000
    at_once, by_one = (DistinctCounters(3, keep_ms=KEEP_MS, exact_values=40) for _ in range(2))
    answers = at_once.observe(hashes, times, windows, keys)
    n_late = 0
    for i, (hash_, t, key) in enumerate(zip(hashes, times, keys, strict=True)):
        n_late += by_one.add(u64(hash_), i64(t), np.array([key], np.uint32))
        for row, one in zip((column[i] for column in answers), by_one.read(t, windows, key), strict=True):
            assert np.array_equal(row, one)
    assert n_late and not answers[3].all() and answers[3].any()
    assert at_once.now_ms == by_one.now_ms
    assert all(at_once.export(key) == by_one.export(key) for key in range(3))


# -- laws ----------------------------------------------------------------------------------------------------

many = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9_000)), max_size=300)


def counter_of(events: list[tuple[int, int]], **settings: int) -> DistinctCounters:
    counters = DistinctCounters(keep_ms=KEEP_MS, **settings)
    if events:
        counters.add(u64(*(hashed(value) for value, _ in events)), i64(*(t for _, t in events)))
    return counters


@given(events=many, exact_values=st.sampled_from([8, 512]), seed=st.randoms(use_true_random=False))
def test_order_repeats_and_batches_change_nothing(
    events: list[tuple[int, int]], exact_values: int, seed: Any
) -> None:
    whole = counter_of(events, exact_values=exact_values, log2_registers=6)
    shuffled = events + [event for event in events if seed.random() < 0.3]
    seed.shuffle(shuffled)
    other = counter_of([], exact_values=exact_values, log2_registers=6)
    for value, t in shuffled:
        other.add(u64(hashed(value)), i64(t))
    assert other.export() == whole.export()
    windows = i64(1, 100, 9_000)
    for at in (0, 4_500, 9_000):
        for mine, its in zip(whole.read(at, windows), other.read(at, windows), strict=True):
            assert np.array_equal(mine, its)


@given(a=many, b=many, c=many, exact_values=st.sampled_from([8, 120, 512]))
def test_merge_of_parts_is_the_whole_in_any_grouping_and_order(
    a: Any, b: Any, c: Any, exact_values: int
) -> None:
    def of(events: list[tuple[int, int]]) -> DistinctCounters:
        return counter_of(events, exact_values=exact_values, log2_registers=6)

    def merged(x: DistinctCounters, y: DistinctCounters) -> DistinctCounters:
        x.merge(y)
        return x

    whole = of(a + b + c).export()
    assert merged(merged(of(a), of(b)), of(c)).export() == whole
    assert merged(of(a), merged(of(b), of(c))).export() == whole
    assert merged(merged(of(c), of(a)), of(b)).export() == whole
    assert merged(of(a), of([])).export() == of(a).export() == merged(of([]), of(a)).export()
    assert merged(of(a), of(a)).export() == of(a).export()


def test_merge_drops_what_the_later_clock_has_passed() -> None:
    old, new = counter_of([(value, value) for value in range(100)]), counter_of([])
    old_matrix = counter_of([(value, value) for value in range(100)], exact_values=8)
    for other, settings_ in ((old, {}), (old_matrix, {"exact_values": 8})):
        new = counter_of([], **settings_)
        new.advance(KEEP_MS + 50)
        new.merge(other)
        _, lower, upper, _ = new.read(new.now_ms, i64(KEEP_MS))
        assert lower[0] <= 49 <= upper[0]
        new.advance(KEEP_MS + 100)
        before = new.export()
        new.merge(other)
        assert new.export() == before and new.expired()


def test_a_view_that_keeps_longer_goes_on_with_what_it_has() -> None:
    """Coarser units: a matrix of the shorter view, loaded under the longer one."""
    rng = np.random.default_rng(2)
    hashes, times = random_hashes(rng, 2_000), 1_000_000 + np.arange(2_000, dtype=np.int64) * 1_000
    short = DistinctCounters(keep_ms=DAY_MS)
    short.add(hashes, times)
    longer = DistinctCounters(keep_ms=KEEP_400_DAYS_MS)
    longer.advance(short.now_ms)
    longer.load(short.export())
    windows = i64(500_000, 1_500_000, DAY_MS)
    # Until the next event it reads as before; then times are known to 32 ms.
    assert all(map(np.array_equal, longer.read(longer.now_ms, windows), short.read(short.now_ms, windows)))
    both, fresh = random_hashes(rng, 1), DistinctCounters(keep_ms=KEEP_400_DAYS_MS)
    longer.add(both, i64(4_000_000))
    fresh.add(np.append(hashes, both), np.append(times, 4_000_000))
    assert longer.export() == fresh.export()
    merged = DistinctCounters(keep_ms=KEEP_400_DAYS_MS)
    merged.add(both, i64(4_000_000))
    merged.merge(short)
    assert merged.export() == fresh.export()


# -- bounds --------------------------------------------------------------------------------------------------


def misses_allowed(n_trials: int, confidence: float) -> int:
    """The most misses that a true coverage of `confidence` has, but for one case in 10,000 (Poisson)."""
    mean, total, k = n_trials * (1 - confidence), 0.0, -1
    while total < 1 - 1e-4:
        k += 1
        total += math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))
    return k


@pytest.mark.parametrize("log2_registers", [6, 9])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize(
    ("n", "n_trials"), [(300, 4_000), (1_000, 3_000), (10_000, 600), (100_000, 100), (1_000_000, 12)]
)
def test_bounds_hold_as_often_as_they_say(
    n: int, n_trials: int, confidence: float, log2_registers: int
) -> None:
    """For a whole sketch and for windows that hold a hundredth and a tenth of it."""
    rng = np.random.default_rng((n, log2_registers))
    times = np.arange(1, n + 1, dtype=np.int64)
    shares = (100, 10, 1)
    windows = i64(*(n // share for share in shares))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    misses, half_widths, errors = np.zeros(3), np.zeros(3), []
    for _ in range(n_trials):
        counters = DistinctCounters(keep_ms=1 << 24, exact_values=1, log2_registers=log2_registers, z=z)
        counters.add(random_hashes(rng, n), times)
        estimate, lower, upper, certain = counters.read(n, windows)
        assert not certain.any()
        misses += (windows < lower) | (upper < windows)
        errors.append(estimate[2] / n - 1)
        half_widths += (upper - lower) / 2 / windows / n_trials
    assert misses.max() <= misses_allowed(n_trials, confidence), misses
    # Wide bounds do not pass for good ones, and the error is what it is said to be.
    standard = 0.65 / 2 ** (log2_registers / 2)
    off = 1.03 * z * standard
    assert np.all(half_widths <= 1.05 * (off + off / (1 - off)) / 2 + 1 / windows)
    assert np.std(errors) < (1.12 if n_trials >= 300 else 1.5) * standard
    assert abs(np.mean(errors)) < standard * (0.1 + 4 / math.sqrt(n_trials))


# -- memory --------------------------------------------------------------------------------------------------


def test_memory_grows_with_what_was_seen() -> None:
    rng = np.random.default_rng(3)
    hashes = random_hashes(rng, 1 << 20)
    counters = DistinctCounters(keep_ms=1 << 24)
    taken = {}
    done = 0
    for n in (1, 2, 3, 4, 6, 9, 100, 256, 512, 513, 1_000, 10_000, 100_000, 1 << 20):
        counters.add(hashes[done:n], np.arange(done, n, dtype=np.int64))
        done, taken[n] = n, counters.block_bytes()
    assert [taken[n] for n in (1, 2, 3, 4, 6, 9)] == [32, 32, 32, 64, 64, 96]
    for n in (100, 256, 512):
        assert taken[n] <= 10 * n * 1.25 + 16
    assert taken[513] <= 6_144 and taken[1_000] <= 6_144 and taken[10_000] <= 14_336
    assert taken[100_000] <= 22_528 and taken[1 << 20] <= 28_672
    # Repeats take nothing.
    used = counters.used_bytes
    counters.add(hashes, np.full(1 << 20, 1 << 20, np.int64))
    assert counters.used_bytes == used


def test_used_memory_is_given_back() -> None:
    rng = np.random.default_rng(4)
    counters = DistinctCounters(64, keep_ms=KEEP_MS)
    keys = np.repeat(np.arange(64, dtype=np.uint32), 2_000)
    counters.add(random_hashes(rng, keys.size), np.full(keys.size, 5, np.int64), keys)
    high = counters.used_bytes
    for turn in range(1, 30):
        now = turn * (KEEP_MS + 6)
        counters.add(random_hashes(rng, keys.size), np.full(keys.size, now, np.int64), keys)
        # What the last turn left is used again, as far as blocks are of the same size class.
        assert counters.used_bytes <= high * 1.6
    counters.advance(now + KEEP_MS + 1)
    counters.prune()
    assert all(counters.block_bytes(key) == 0 and counters.expired(key) for key in range(64))
    # A burst that has gone leaves a matrix that shrinks.
    counters.add(random_hashes(rng, 100_000), np.full(100_000, counters.now_ms, np.int64))
    busy = counters.block_bytes()
    counters.add(random_hashes(rng, 100), counters.now_ms + np.arange(5, 105, dtype=np.int64) * 90)
    counters.advance(counters.now_ms + 1_500)
    before, answer = counters.export(), counters.read(counters.now_ms, i64(KEEP_MS))
    counters.prune()
    assert counters.block_bytes() < busy / 10
    assert counters.export() == before
    assert counters.read(counters.now_ms, i64(KEEP_MS)) == answer


# -- bytes ---------------------------------------------------------------------------------------------------


def exported(n: int, **settings: int) -> bytes:
    rng = np.random.default_rng(n)
    counters = DistinctCounters(**{"keep_ms": KEEP_MS, **settings})
    counters.add(random_hashes(rng, n), 1_700_000_000_000 + np.arange(n, dtype=np.int64))
    return counters.export()


def test_bytes_are_as_described() -> None:
    counters = DistinctCounters(keep_ms=KEEP_MS)
    counters.add(u64(2 << 24, 1 << 24), i64(ERA_MS + 5, ERA_MS - 6))
    data = counters.export()
    assert data[:16] == struct.pack("<HBBIq", 0, 4, 0, 2, ERA_MS)
    entries = [(1, ERA_MS - 6), (2, 5 + ERA_MS)]
    assert data[16:36] == b"".join(
        fingerprint.to_bytes(5, "little") + t.to_bytes(5, "little") for fingerprint, t in entries
    )
    assert data[36:] == bytes(4)
    matrix = DistinctCounters(keep_ms=KEEP_MS, exact_values=1, log2_registers=6)
    times = {hashed(value): ERA_TICKS - 50 + value for value in range(200)}
    matrix.add(u64(*times), i64(*times.values()))
    data = matrix.export()
    last: dict[tuple[int, int], int] = {}
    for hash_, t in times.items():
        register, rank = cell(hash_, 6)
        last[rank, register] = max(last.get((rank, register), -ERA_MS), t - ERA_TICKS)
    n_dense = 0
    while sum(rank == n_dense for rank, _ in last) * 2 >= 64:
        n_dense += 1
    sparse = sorted(place for place in last if place[0] >= n_dense)
    assert n_dense >= 2 and sparse
    assert data == struct.pack(
        "<HBBBBHIIq", 0, 5, 6, 0, n_dense, 0, len(sparse), 0, ERA_TICKS + 149
    ) + b"".join(
        struct.pack("<i", last.get((rank, register), -ERA_TICKS))
        for rank in range(n_dense)
        for register in range(64)
    ) + b"".join(struct.pack("<iHH", last[place], place[1], place[0]) for place in sparse)


@pytest.mark.parametrize("n", [0, 1, 3, 255, 256, 512, 513, 2_000, 50_000])
@pytest.mark.parametrize("keep_ms", [KEEP_MS, KEEP_400_DAYS_MS])
def test_bytes_come_back_and_are_refused_when_cut(n: int, keep_ms: int) -> None:
    data = exported(n, keep_ms=keep_ms) if n else DistinctCounters(keep_ms=keep_ms).export()
    counters = DistinctCounters(keep_ms=keep_ms)
    counters.advance(1_700_000_000_000 + n)
    assert counters.load(data + b"more") == len(data)
    assert counters.export() == data
    for length in {*range(0, min(len(data), 60)), *range(max(0, len(data) - 60), len(data))}:
        with pytest.raises(ValueError, match="not a distinct counter"):
            counters.load(data[:length])
    assert counters.export() == data
    if n:
        for other in ({"log2_registers": 8}, {"exact_values": 2}):
            if (data[2] == 5) == ("log2_registers" in other) and n > 2:
                with pytest.raises(ValueError, match="not a distinct counter"):
                    DistinctCounters(keep_ms=keep_ms, **other).load(data)


BASES = [exported(n, log2_registers=6, exact_values=50) for n in (1, 30, 60, 900)]


@given(
    base=st.sampled_from(BASES),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=6),
    tail=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 255)), max_size=3),
    later=st.integers(0, 2 * KEEP_MS),
)
@settings(max_examples=1_000)
def test_hostile_bytes_are_refused_or_harmless(
    base: bytes, edits: list[tuple[int, int]], tail: list[tuple[int, int]], later: int
) -> None:
    data = bytearray(base)
    for at, byte in edits:
        data[at % len(data)] = byte
    for at, byte in tail:
        data[-at % len(data)] = byte
    counters = DistinctCounters(2, keep_ms=KEEP_MS, log2_registers=6, exact_values=50)
    try:
        counters.load(bytes(data))
    except ValueError:
        return
    counters.advance(1_700_000_000_000)
    again = counters.export()
    assert counters.load(again) == len(again)
    estimate, lower, upper, _ = counters.read(counters.now_ms, i64(1, 500, KEEP_MS))
    assert np.all((lower <= estimate) & (estimate <= upper)) and np.isfinite(upper).all()
    rng = np.random.default_rng(later)
    counters.add(random_hashes(rng, 300), np.full(300, counters.now_ms + later, np.int64))
    counters.clone(0, 1)
    counters.merge(counters, 1, 0)
    counters.prune()
    assert counters.export(1) == counters.export(0)


def test_bytes_whose_newest_time_is_not_that_of_the_newest_cell_are_refused() -> None:
    counters = DistinctCounters(keep_ms=KEEP_MS, log2_registers=6)
    never = -ERA_TICKS
    for n_dense, cells in ((1, struct.pack("<64i", 8, *[never] * 63)), (0, struct.pack("<iHH", 8, 5, 3))):
        for newest, right in ((8, True), (7, False), (9, False)):
            head = struct.pack("<HBBBBHIIq", 0, 5, 6, 0, n_dense, 0, 1 - n_dense, 0, newest)
            if right:
                assert counters.load(head + cells) == 24 + len(cells)
            else:
                with pytest.raises(ValueError, match="not a distinct counter"):
                    counters.load(head + cells)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_harmless(data: bytes) -> None:
    counters = DistinctCounters(keep_ms=KEEP_MS)
    for kind in (b"\4", b"\5"):
        try:
            assert counters.load(data[:2] + kind + data[3:]) <= len(data) + 3
        except ValueError:
            continue
        counters.read(0, i64(KEEP_MS))


# -- extremes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact_values", [512, 1])
@pytest.mark.parametrize("keep_ms", [KEEP_MS, KEEP_400_DAYS_MS])
def test_from_the_first_year_to_the_last(exact_values: int, keep_ms: int) -> None:
    counters = DistinctCounters(keep_ms=keep_ms, exact_values=exact_values)
    now = YEAR_1_MS
    while now < YEAR_9999_MS:
        counters.add(u64(*map(hashed, (1, 2, 3))), i64(now, now - keep_ms // 2, now))
        estimate, _, _, certain = counters.read(now, i64(keep_ms // 4, keep_ms))
        assert np.round(estimate).tolist() == [2, 3] and certain.all() == (exact_values > 1)
        now += ERA_MS // 3 + 12_345
    for time_ms in (1 << 48, -(1 << 48)):
        with pytest.raises(ValueError, match="not within 2\\^48 ms of the epoch"):
            counters.add(u64(1), i64(time_ms))
        with pytest.raises(ValueError, match="not within 2\\^48 ms of the epoch"):
            counters.read(time_ms, i64(1))


def test_a_matrix_of_every_cell_is_finite() -> None:
    for log2_registers in (6, 9):
        m, n_ranks = 1 << log2_registers, 41 - log2_registers
        data = struct.pack("<HBBBBHIIq", 0, 5, log2_registers, 0, n_ranks, 0, 0, 0, 1_000)
        counters = DistinctCounters(keep_ms=KEEP_MS, log2_registers=log2_registers)
        counters.advance(1_000)
        counters.load(data + struct.pack("<i", 1_000) * (m * n_ranks))
        estimate, lower, upper, certain = counters.read(1_000, i64(1_000))
        assert 1e12 < estimate[0] < 1.2e12 and lower[0] < estimate[0] < upper[0] < 2e12 and not certain[0]
        # One cell fewer, of the last rank: very many, and the search for them ends.
        one_less = data + struct.pack("<i", 1_000) * (m * n_ranks - 1) + struct.pack("<i", -(1 << 31))
        counters.load(one_less)
        assert 1e11 < counters.read(1_000, i64(1_000))[0][0] < 1.2e12
        # Only the highest ranks: no stream does this, and it is finite all the same.
        never = struct.pack("<i", -(1 << 31)) * m
        counters.load(data + never * (n_ranks - 1) + struct.pack("<i", 1_000) * m)
        estimate, lower, upper, _ = counters.read(1_000, i64(1_000))
        assert m <= lower[0] <= estimate[0] <= upper[0] < 2e12


def test_hashes_without_a_single_bit_count_like_others() -> None:
    for exact_values in (512, 1):
        counters = DistinctCounters(keep_ms=KEEP_MS, exact_values=exact_values)
        counters.add(u64(0, (1 << 64) - 1, 0, 1 << 63), i64(1, 2, 3, 4))
        assert round(counters.read(4, i64(KEEP_MS))[0][0]) == 3


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_keys": 0}, "n_keys"),
        ({"keep_ms": 0}, "keep_ms"),
        ({"keep_ms": (1 << 38) + 1}, "keep_ms"),
        ({"exact_values": 0}, "exact_values"),
        ({"exact_values": 4_097}, "exact_values"),
        ({"log2_registers": 5}, "log2_registers"),
        ({"log2_registers": 15}, "log2_registers"),
        ({"z": 0.0}, "z is"),
        ({"z": 4.1}, "z is"),
    ],
)
def test_settings_out_of_range_are_errors(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistinctCounters(**{"keep_ms": KEEP_MS, **wrong})


def test_arguments_out_of_range_are_errors() -> None:
    counters = DistinctCounters(3, keep_ms=KEEP_MS)
    two = np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match="of one length"):
        counters.add(u64(1), i64(1, 2))
    with pytest.raises(ValueError, match="of one length"):
        counters.add(u64(1), i64(1), two)
    with pytest.raises(ValueError, match="key 3: there are 3"):
        counters.add(u64(1), i64(1), np.array([3], np.uint32))
    for key in (-1, 3):
        with pytest.raises(ValueError, match=f"key {key}: there are 3"):
            counters.read(0, i64(1), key)
    for windows in (i64(), i64(0), i64(2, 1), i64(1 << 48)):
        with pytest.raises(ValueError, match="window"):
            counters.read(0, windows)
        with pytest.raises(ValueError, match="window"):
            counters.observe(u64(1), i64(1), windows)
    with pytest.raises(ValueError, match="log2_registers are the same"):
        counters.merge(DistinctCounters(keep_ms=KEEP_MS, log2_registers=8))
    assert counters.add(u64(), i64()) == 0
    assert counters.expired() and counters.used_bytes == 0
