"""The windowed count-min sketch, step by step against a model of unlimited memory, and against the truth."""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurestore.core.countmin import CountminSketch
from featurestore.core.hashing import fingerprint
from featurestore.errors import CorruptRecordError

OK, SATURATED, UNAVAILABLE = 0, 1, 2
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
WINDOWS_MS = [MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, DAY_MS, 7 * DAY_MS]
START_MS = 1_700_000_000_000
YEAR_1_MS, YEAR_9999_MS = -62_135_596_800_000, 253_402_300_799_999
MAX_COUNT = 2**31 - 1
SECRET = bytes(range(16))

SHORT_MS = [8, 40, 200]  # windows of the model's tests: edges and jumps are near each other
SHORT_LATENESS_MS = 60
KEYS = np.random.default_rng(7).integers(0, 2**64, (5, 2), dtype=np.uint64)


def short(*, wide: bool = False, sums: bool = False) -> CountminSketch:
    """Four columns, where keys collide in most rows, or thousands, where they do not."""
    epsilon = 1e-3 if wide else 0.9
    return CountminSketch(epsilon, 0.06, SHORT_MS, lateness_ms=SHORT_LATENESS_MS, n_slices=4, sums=sums)


def at(time_ms: int, n: int = 1) -> NDArray[np.int64]:
    return np.full(n, time_ms, np.int64)


Weight = int | Fraction


class Model:
    """The same sketch written down plainly: every slice of every level for ever, looked up by its number."""

    def __init__(self, sketch: CountminSketch) -> None:
        shape = sketch.shape
        self.places = sketch.places(KEYS)
        self.levels = list(zip(shape.slices_ms, shape.n_slices, strict=True))
        self.error = shape.error
        self.cells: dict[tuple[int, int, int], Weight] = defaultdict(int)
        self.plain: dict[tuple[int, int, int], Weight] = defaultdict(int)
        self.totals: dict[tuple[int, int], Weight] = defaultdict(int)
        self.events: list[tuple[int, int, Weight]] = []
        self.newest: int | None = None

    def kept_from(self, level: int) -> int:
        slice_ms, n = self.levels[level]
        assert self.newest is not None
        return (self.newest // slice_ms - n + 1) * slice_ms

    def add(self, key: int, time_ms: int, weight: Weight) -> bool:
        """False when it is late."""
        if weight == 0:
            return True
        self.newest = time_ms if self.newest is None else max(self.newest, time_ms)
        levels = [i for i in range(len(self.levels)) if time_ms >= self.kept_from(i)]
        for i in levels:
            number = time_ms // self.levels[i][0]
            mine = [(int(place), i, number) for place in self.places[key]]
            least = min(self.cells[cell] for cell in mine) + weight
            for cell in mine:
                self.cells[cell] = max(self.cells[cell], least)
                self.plain[cell] += weight
            self.totals[i, number] += weight
        if levels:
            self.events.append((key, time_ms, weight))
        return bool(levels)

    def truth(self, key: int, time_ms: int, window_ms: int) -> Weight:
        return sum(w for k, t, w in self.events if k == key and time_ms - window_ms < t <= time_ms)

    def check(self, key: int, time_ms: int, window_ms: int, reply: np.void, *, exactly: bool) -> None:
        """One reply: that it is the model's, and that the truth is where it says."""
        first_ms = time_ms - window_ms + 1
        if self.newest is None or first_ms > self.newest:
            assert reply["status"] == OK
            assert (reply["estimate"], reply["lower"], reply["bound"], reply["weight"]) == (0, 0, 0, 0)
            assert self.truth(key, time_ms, window_ms) == 0
            return
        levels = [i for i in range(len(self.levels)) if first_ms >= self.kept_from(i)]
        if not levels:
            assert reply["status"] == UNAVAILABLE
            assert all(math.isnan(reply[name]) for name in ("estimate", "lower", "bound", "weight"))
            return
        i = levels[0]
        slice_ms = self.levels[i][0]
        estimate: Weight = 0
        inside: Weight = 0
        weight: Weight = 0
        plain: list[Weight] = [0] * len(self.places[key])
        for number in range(first_ms // slice_ms, min(time_ms, self.newest) // slice_ms + 1):
            cells = [(int(place), i, number) for place in self.places[key]]
            least = min(self.cells[cell] for cell in cells)
            estimate += least
            end_ms = min((number + 1) * slice_ms, self.newest + 1)
            if number * slice_ms >= first_ms and end_ms <= time_ms + 1:
                inside += least
            plain = [sum_ + self.plain[cell] for sum_, cell in zip(plain, cells, strict=True)]
            weight += self.totals[i, number]
        assert reply["status"] == OK
        truth = self.truth(key, time_ms, window_ms)
        assert truth <= estimate <= min(plain) <= weight <= float(reply["weight"])
        assert truth <= float(reply["estimate"])  # Python compares these exactly
        if exactly:
            assert (float(reply["estimate"]), float(reply["weight"])) == (estimate, weight)
        assert reply["estimate"] == pytest.approx(float(estimate), rel=1e-12)
        assert reply["bound"] == pytest.approx(float(weight) * self.error, rel=1e-12)
        assert reply["bound"] >= float(weight) * self.error
        lower = max(0.0, float(inside) - reply["bound"])
        assert reply["lower"] == pytest.approx(lower, rel=1e-9, abs=1e-9 * float(weight))

    def edges(self) -> list[int]:
        """Times to read at: the newest, its neighbours, where windows begin or end exactly with a slice."""
        if self.newest is None:
            return [START_MS]
        times = {self.newest - 1, self.newest, self.newest + 1, self.newest - 30, self.newest + 150}
        for (slice_ms, _), window_ms in zip(self.levels, SHORT_MS, strict=False):
            begin = self.newest // slice_ms * slice_ms
            times |= {begin - 1, begin, begin + slice_ms - 1, (begin + window_ms - 1) % slice_ms + begin}
        return [min(max(time_ms, YEAR_1_MS), YEAR_9999_MS) for time_ms in sorted(times)]


STEPS = st.lists(
    st.tuples(
        st.integers(0, len(KEYS) - 1),
        st.one_of(
            st.integers(0, 3),  # to the next event
            st.integers(-300, 30),  # late, some too late
            st.sampled_from([-SHORT_LATENESS_MS, 8, 40, 200, 261, 10_000]),  # beyond every window
            st.sampled_from([60 * DAY_MS, 400 * DAY_MS]),  # where ticks no longer fit
        ),
        st.integers(0, 5),
    ),
    max_size=14,
)


@pytest.mark.parametrize("start_ms", [START_MS, YEAR_1_MS, -DAY_MS // 3, 0, YEAR_9999_MS - 1_000 * DAY_MS])
@pytest.mark.parametrize("wide", [False, True])
@settings(max_examples=25)
@given(steps=STEPS)
def test_after_every_step_it_answers_as_the_model_and_never_below_the_truth(
    start_ms: int, wide: bool, steps: list[tuple[int, int, int]]
) -> None:
    sketch = short(wide=wide)
    model = Model(sketch)
    now = start_ms
    for i, (key, step, weight) in enumerate([(0, 0, 0), *steps]):
        now = max(now, now + step)
        time_ms = min(max(now + min(step, 0), YEAR_1_MS), YEAR_9999_MS)
        weights = np.array([float(weight)])
        peeked = sketch.peek(KEYS[key : key + 1], at(time_ms), weights, at(time_ms), SHORT_MS)
        before = sketch.export()
        late = sketch.add(KEYS[key : key + 1], at(time_ms), weights)
        assert late == (not model.add(key, time_ms, weight))
        assert sketch.newest_ms == model.newest
        if late:
            assert sketch.export() == before
        read = sketch.read(KEYS[key : key + 1], at(time_ms), SHORT_MS)
        assert peeked.tobytes() == read.tobytes()
        for read_ms in model.edges()[i % 3 :: 3]:
            replies = sketch.read(KEYS, at(read_ms, len(KEYS)), [1, *SHORT_MS, 260])
            for k in (key, (key + 1) % len(KEYS)):
                for window_ms, reply in zip([1, *SHORT_MS, 260], replies[k], strict=True):
                    model.check(k, read_ms, window_ms, reply, exactly=True)
    loaded = short(wide=wide)
    loaded.load(sketch.export())
    assert loaded.export() == sketch.export()


@settings(max_examples=30)
@given(steps=st.lists(st.tuples(st.integers(0, 4), st.integers(-30, 30), st.floats(0, 1e15)), max_size=15))
def test_sums_are_rounded_up_never_down(steps: list[tuple[int, int, float]]) -> None:
    sketch = short(sums=True)
    model = Model(sketch)
    now = START_MS
    for key, step, weight in steps:
        now = max(now, now + step)
        peeked = sketch.peek(
            KEYS[key : key + 1], at(now + min(step, 0)), np.array([weight]), at(now), SHORT_MS
        )
        sketch.add(KEYS[key : key + 1], at(now + min(step, 0)), np.array([weight]))
        model.add(key, now + min(step, 0), Fraction(weight))
        assert sketch.read(KEYS[key : key + 1], at(now), SHORT_MS).tobytes() == peeked.tobytes()
        replies = sketch.read(KEYS, at(now, len(KEYS)), SHORT_MS)
        for k in range(len(KEYS)):
            for window_ms, reply in zip(SHORT_MS, replies[k], strict=True):
                model.check(k, now, window_ms, reply, exactly=False)


def test_whole_sums_are_exact() -> None:
    sketch = short(wide=True, sums=True)
    for weight in (3.0, 0.5, 1e9):
        sketch.add(KEYS[:1], at(START_MS), np.array([weight]))
    assert sketch.read(KEYS[:1], at(START_MS), [200])[0, 0]["estimate"] == 1_000_000_003.5


# ---- Shape


@pytest.mark.parametrize(
    "windows_ms", [WINDOWS_MS, [1_000], [1_000, 1_001], [700, 1_300, 400_000], [400 * DAY_MS]]
)
@pytest.mark.parametrize("lateness_ms", [0, 1, HOUR_MS, 9 * DAY_MS])
@pytest.mark.parametrize("n_slices", [1, 2, 5])
def test_every_window_is_kept_whole_in_slices_of_its_own_length(
    windows_ms: list[int], lateness_ms: int, n_slices: int
) -> None:
    shape = CountminSketch(0.5, 0.5, windows_ms, lateness_ms=lateness_ms, n_slices=n_slices).shape
    for i, window_ms in enumerate(windows_ms):
        assert shape.slices_ms[i] * n_slices <= window_ms <= shape.reaches_ms[i]
    for slice_ms, reach_ms, n in zip(shape.slices_ms, shape.reaches_ms, shape.n_slices, strict=True):
        assert slice_ms % shape.slices_ms[0] == 0
        assert (n - 1) * slice_ms >= reach_ms  # whatever the newest slice holds of its time
    assert shape.reaches_ms[-1] == windows_ms[-1] + lateness_ms
    assert (1 + sum(shape.n_slices)) * 4 <= shape.cell_bytes


def test_the_usual_windows_take_two_cache_lines() -> None:
    shape = CountminSketch(0.01, 0.01, WINDOWS_MS).shape
    assert (shape.depth, shape.width, shape.cell_bytes) == (5, 272, 128)
    assert shape.n_slices == (6, 6, 6, 6, 7)
    assert shape.slices_ms == (12_000, 2 * MINUTE_MS, 12 * MINUTE_MS, 17_280_000, 120_960_000)


@pytest.mark.parametrize(
    ("epsilon", "delta", "windows_ms", "more"),
    [
        (0.0, 0.1, [1_000], {}),
        (1.0, 0.1, [1_000], {}),
        (math.nan, 0.1, [1_000], {}),
        (-0.1, 0.1, [1_000], {}),
        (0.1, 0.0, [1_000], {}),
        (0.1, 1.0, [1_000], {}),
        (0.1, math.nan, [1_000], {}),
        (0.1, 1e-8, [1_000], {}),  # 19 rows
        (1e-9, 0.01, [1_000], {}),  # 1.7 TB
        (5e-324, 0.01, [1_000], {}),
        (0.1, 0.1, [], {}),
        (0.1, 0.1, [0], {}),
        (0.1, 0.1, [-1], {}),
        (0.1, 0.1, [2_000, 1_000], {}),
        (0.1, 0.1, [1_000, 1_000], {}),
        (0.1, 0.1, [2**53 + 1], {}),
        (0.1, 0.1, [1_000], {"lateness_ms": -1}),
        (0.1, 0.1, [1_000], {"n_slices": 63}),
        (0.1, 0.1, [3], {"n_slices": 4}),
        (0.1, 0.1, [1, 2**40], {"n_slices": 1}),  # too many ticks to keep
        (0.1, 0.1, list(range(1_000, 18_000, 1_000)), {}),  # more levels than a cell has
        (0.1, 0.1, WINDOWS_MS, {"cell_bytes": 32}),
    ],
)
def test_what_is_out_of_range_is_refused(
    epsilon: float, delta: float, windows_ms: list[int], more: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"window|sketch"):
        CountminSketch(epsilon, delta, windows_ms, **more)


def test_arguments_that_do_not_fit_are_refused() -> None:
    sketch = short()
    with pytest.raises(ValueError, match="fingerprints"):
        sketch.add(np.zeros((1, 3), np.uint64), at(0))
    with pytest.raises(ValueError, match="fingerprints"):
        sketch.add(KEYS[:2], at(0))
    with pytest.raises(ValueError, match="years"):
        sketch.add(KEYS[:1], at(YEAR_9999_MS + 1))
    with pytest.raises(ValueError, match="years"):
        sketch.read(KEYS[:1], at(YEAR_1_MS - 1), [8])
    with pytest.raises(ValueError, match="windows"):
        sketch.read(KEYS[:1], at(0), [0])
    with pytest.raises(ValueError, match="windows"):
        sketch.read(KEYS[:1], at(0), [8] * 33)
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weight"):
            sketch.add(KEYS[:1], at(0), np.array([weight]))
    assert sketch.newest_ms is None


# ---- Saturation


def test_a_count_that_is_full_says_so_and_answers_with_all_there_is() -> None:
    sketch = short(wide=True)
    sketch.add(KEYS[:1], at(START_MS), np.array([float(MAX_COUNT - 1)]))
    assert sketch.read(KEYS[:1], at(START_MS), [200])[0, 0]["status"] == OK
    sketch.add(KEYS[:2], at(START_MS, 2), np.array([5.0, 7.0]))
    full, other = sketch.read(KEYS[:2], at(START_MS, 2), [200])[:, 0]
    assert full["status"] == SATURATED
    assert full["estimate"] == full["weight"] == MAX_COUNT - 1 + 5 + 7
    assert full["lower"] == pytest.approx(MAX_COUNT - full["bound"])
    assert (other["status"], other["estimate"]) == (OK, 7)
    sketch.add(KEYS[:1], at(START_MS), np.array([1e300]))  # a weight counts 2^31 - 1 at most
    assert sketch.read(KEYS[:1], at(START_MS), [200])[0, 0]["weight"] == 2 * MAX_COUNT - 1 + 12
    sketch.add(KEYS[:1], at(START_MS + 300))  # and when it has aged, it is over
    aged = sketch.read(KEYS[:1], at(START_MS + 300), [200])[0, 0]
    assert (aged["status"], aged["estimate"]) == (OK, 1)


def test_a_sum_that_is_infinite_says_so() -> None:
    sketch = short(wide=True, sums=True)
    for _ in range(3):
        sketch.add(KEYS[:1], at(START_MS), np.array([1e308]))
    sketch.add(KEYS[1:2], at(START_MS), np.array([2.0]))
    full, other = sketch.read(KEYS[:2], at(START_MS, 2), [200])[:, 0]
    assert (full["status"], full["estimate"], full["lower"]) == (SATURATED, math.inf, 0)
    assert (other["status"], other["estimate"], other["lower"]) == (OK, 2.0, 0)


# ---- Batches, records, checkpoints


def stream(n: int, seed: int, *, span_ms: int = 3_000) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    times = START_MS + np.sort(rng.integers(0, span_ms, n)) - rng.integers(0, 2, n) * rng.integers(0, 400, n)
    return KEYS[rng.integers(0, len(KEYS), n)], times.astype(np.int64)


def many(n: int, seed: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, (n, 2), dtype=np.uint64)


@pytest.mark.parametrize("sums", [False, True])
def test_state_does_not_depend_on_batches(sums: bool) -> None:
    keys, times = stream(2_000, 1)
    weights = np.random.default_rng(2).random(keys.shape[0]) * 9
    whole, parts, single = (short(sums=sums) for _ in range(3))
    n_late = whole.add(keys, times, weights)
    assert 0 < n_late < 1_000
    cuts = [0, 1, 2, 13, 14, 500, 1_999, 2_000]
    assert sum(parts.add(keys[a:b], times[a:b], weights[a:b]) for a, b in itertools.pairwise(cuts)) == n_late
    for i in range(len(keys)):
        single.add(keys[i : i + 1], times[i : i + 1], weights[i : i + 1])
        single.read(KEYS, at(int(times[i]), len(KEYS)), SHORT_MS)  # nor on reads
    assert whole.export() == parts.export() == single.export()


def records_of(data: bytes) -> dict[int, bytes]:
    records, place = {}, 0
    while place < len(data):
        number, n = struct.unpack_from("<II", data, place)
        assert number not in records
        records[number] = data[place : place + 8 + n]
        place += 8 + n
    return records


@pytest.mark.parametrize("sums", [False, True])
def test_a_checkpoint_has_what_was_at_the_cut_whatever_changes_meanwhile(sums: bool) -> None:
    sketch = short(wide=True, sums=sums)
    stored: dict[int, bytes] = {}
    time_ms = START_MS
    for turn in range(6):
        n = [3_000, 2, 2, 0, 1_000, 2][turn]
        sketch.add(many(n, turn), at(time_ms, n))
        expected = sketch.export()
        sketch.cut()
        more = True
        i = 0
        while more:
            time_ms += 60 * DAY_MS if turn == 4 and i == 1 else 3  # ticks get a new origin under way
            sketch.add(many(40, 100 + i), at(time_ms, 40))
            more = sketch.copy_slice()
            i += 1
        assert i > 1 or turn
        copied = records_of(sketch.copied())
        written = turn != 1  # that one failed: the next has its pieces too
        sketch.copy_end(written)
        if written:
            stored |= copied
        if turn == 0:
            sketch_pieces = len(copied)
        if turn == 3:
            assert len(copied) < sketch_pieces
        if written:
            loaded = short(wide=True, sums=sums)
            loaded.load(stored[0xFFFFFFFF] + b"".join(r for k, r in stored.items() if k != 0xFFFFFFFF))
            assert loaded.export() == expected


@pytest.mark.parametrize("sums", [False, True])
def test_a_loaded_sketch_goes_on_as_the_one_that_was_written(sums: bool) -> None:
    sketch, loaded = short(sums=sums), short(sums=sums)
    keys, times = stream(1_500, 3)
    sketch.add(keys[:1_000], times[:1_000])
    loaded.load(sketch.export())
    assert loaded.newest_ms == sketch.newest_ms
    assert sketch.add(keys[1_000:], times[1_000:]) == loaded.add(keys[1_000:], times[1_000:])
    assert loaded.export() == sketch.export()
    now = at(int(times.max()), len(KEYS))
    assert loaded.read(KEYS, now, SHORT_MS).tobytes() == sketch.read(KEYS, now, SHORT_MS).tobytes()


def test_an_empty_sketch_is_written_and_loaded() -> None:
    loaded = short()
    loaded.load(short().export())
    assert loaded.newest_ms is None
    assert loaded.export() == short().export()


HOSTILE = {
    "cut short": lambda d: d[:-1],
    "one byte of a record": lambda d: d[:4],
    "a piece first": lambda d: d[8 + struct.unpack_from("<I", d, 4)[0] :],
    "the head twice": lambda d: d + d[: 8 + struct.unpack_from("<I", d, 4)[0]],
    "a piece twice": lambda d: d + d[8 + struct.unpack_from("<I", d, 4)[0] :],
    "a piece that there is not": lambda d: d + struct.pack("<II", 10_000, 0),
    "another version": lambda d: d[:8] + b"\x02" + d[9:],
    "another width": lambda d: d[:16] + b"\x05" + d[17:],
    "an origin that is no tick": lambda d: d[:40] + bytes([d[40] ^ 1]) + d[41:],
    "a newest time out of range": lambda d: d[:48] + struct.pack("<q", 2**60) + d[56:],
    "a newest time before the origin": lambda d: d[:48] + struct.pack("<q", START_MS - 10**6) + d[56:],
    "a length beyond the end": lambda d: d[:4] + struct.pack("<I", 0xFFFFFFF8) + d[8:],
    "a total that is no number": lambda d: d[:112] + struct.pack("<d", math.nan) + d[120:],
    "a total below 0": lambda d: d[:112] + struct.pack("<d", -1.0) + d[120:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_are_no_records_are_refused(name: str) -> None:
    sketch = short()
    sketch.add(*stream(200, 4))
    data = HOSTILE[name](sketch.export())
    with pytest.raises(CorruptRecordError, match="at byte"):
        short().load(data)


@given(data=st.data())
def test_damaged_records_are_refused_or_bound_something(data: st.DataObject) -> None:
    """Whatever bytes load, reading and adding stay in their memory (the sanitizer build watches)."""
    sums = data.draw(st.booleans())
    sketch = short(sums=sums)
    sketch.add(*stream(60, 5))
    raw = bytearray(sketch.export())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    loaded = short(sums=sums)
    with contextlib.suppress(CorruptRecordError):
        loaded.load(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    time_ms = (loaded.newest_ms or START_MS) // 2 + START_MS // 2
    loaded.add(KEYS, at(time_ms, len(KEYS)))
    replies = loaded.read(KEYS, at(time_ms, len(KEYS)), SHORT_MS)
    assert all(replies["estimate"][replies["status"] == OK] >= 0)


# ---- Merging


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("later_ms", [0, 3_000, 60 * DAY_MS])
def test_a_merged_sketch_is_above_the_truth_and_below_the_plain_one(sums: bool, later_ms: int) -> None:
    whole, one, other = short(sums=sums), short(sums=sums), short(sums=sums)
    model = Model(whole)
    keys, times = stream(400, 6, span_ms=150)
    times = np.sort(times)
    times[200:] += later_ms
    numbers = [int(np.flatnonzero((key == KEYS).all(1))[0]) for key in keys]
    for number, time_ms in zip(numbers, times, strict=True):
        model.add(number, int(time_ms), 1)
    one.add(keys[:200], times[:200])
    other.add(keys[200:], times[200:])
    forwards, backwards = short(sums=sums), short(sums=sums)
    for into, parts in ((forwards, (one, other)), (backwards, (other, one))):
        for part in parts:
            into.merge(part)
    assert forwards.newest_ms == backwards.newest_ms == int(times.max())
    now = int(times.max())
    replies = forwards.read(KEYS, at(now, len(KEYS)), SHORT_MS)
    assert replies.tobytes() == backwards.read(KEYS, at(now, len(KEYS)), SHORT_MS).tobytes()
    for k in range(len(KEYS)):
        for i, window_ms in enumerate(SHORT_MS):
            reply = replies[k, i]
            first = (now - window_ms + 1) // model.levels[i][0]
            plain = min(
                sum(model.plain[int(place), i, n] for n in range(first, now // model.levels[i][0] + 1))
                for place in model.places[k]
            )
            assert model.truth(k, now, window_ms) <= reply["estimate"] <= plain <= reply["weight"]


def test_sketches_of_other_shapes_do_not_merge() -> None:
    sketch = short()
    sketch.add(KEYS, at(START_MS, len(KEYS)))
    before = sketch.export()
    for other in (
        short(wide=True),
        short(sums=True),
        CountminSketch(0.9, 0.06, [8, 40, 201], lateness_ms=SHORT_LATENESS_MS, n_slices=4),
    ):
        with pytest.raises(ValueError, match="merge"):
            sketch.merge(other)
    assert sketch.export() == before


# ---- Error, and those who want more of it


def test_rows_choose_columns_evenly_and_apart() -> None:
    """Chi-square of one row's columns, and of the pairs and triples of columns that rows choose together,
    over keys as one shard sees them: with the topmost bits of the fingerprint's second half all alike."""
    sketch = CountminSketch(0.35, 0.01, [1_000])
    assert (sketch.shape.width, sketch.shape.depth) == (8, 5)
    keys = many(200_000, 9)
    keys[:, 1] = keys[:, 1] >> np.uint64(12) | np.uint64(0xABC << 52)
    columns = sketch.places(keys) - np.arange(5, dtype=np.uint64) * np.uint64(8)
    assert columns.max() < 8
    for rows in [(0,), (4,), (0, 1), (0, 2), (1, 2), (3, 4), (0, 4), (0, 1, 2), (2, 3, 4), (0, 2, 4)]:
        cells = np.zeros(len(keys), np.int64)
        for row in rows:
            cells = cells * 8 + columns[:, row].astype(np.int64)
        expected = len(keys) / 8 ** len(rows)
        seen = np.bincount(cells, minlength=8 ** len(rows))
        chi_square = float(((seen - expected) ** 2 / expected).sum())
        freedom = 8 ** len(rows) - 1
        assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)  # five standard deviations


def zipf(n: int, n_keys: int, seed: int) -> NDArray[np.int64]:
    weights = np.cumsum(np.arange(1, n_keys + 1) ** -1.05)
    drawn = np.random.default_rng(seed).random(n) * weights[-1]
    return np.minimum(np.searchsorted(weights, drawn), n_keys - 1)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-4])
def test_fewer_keys_than_delta_are_off_by_more_than_the_bound_and_less_than_plain(epsilon: float) -> None:
    delta, n_keys = 0.05, 20_000
    sketch = CountminSketch(epsilon, delta, WINDOWS_MS)
    keys, numbers = many(n_keys, 10), zipf(300_000, n_keys, 11)
    times = START_MS + np.arange(numbers.size, dtype=np.int64)
    sketch.add(keys[numbers], times)
    truth = np.bincount(numbers, minlength=n_keys)
    replies = sketch.read(keys, at(int(times[-1]), n_keys), [DAY_MS])[:, 0]
    over = replies["estimate"] - truth
    assert over.min() >= 0
    assert (over > replies["bound"]).mean() <= delta
    assert (replies["lower"] > truth).mean() <= delta
    assert (replies["weight"] == numbers.size).all()
    places = sketch.places(keys)
    cells = np.zeros(int(places.max()) + 1, np.int64)
    for row in range(places.shape[1]):
        np.add.at(cells, places[numbers, row].astype(np.int64), 1)
    plain = cells[places.astype(np.int64)].min(1) - truth
    assert (over <= plain).all()
    assert over.mean() < 0.8 * plain.mean()


def pair_fingerprints(secret: bytes, pairs: list[tuple[str, str]]) -> NDArray[np.uint64]:
    raw = b"".join(fingerprint(secret, 3, [a.encode(), b.encode()]) or b"" for a, b in pairs)
    return np.frombuffer(raw, np.uint64).reshape(-1, 2).copy()


def test_who_knows_the_source_but_not_the_secret_adds_no_error_beyond_the_bound() -> None:
    """20 % of the traffic is an attacker's, who knows all code and another secret and would raise 20 victims
    by keys built to collide with each in every row under the secret known, with sequential keys, and
    with neighbours of the victims'. Under that secret the attack works; under the real one it is noise."""
    other_secret = bytes(range(1, 17))
    epsilon, delta, n_keys, n_benign, n_victims = 1e-3, 0.02, 5_000, 80_000, 20
    pairs = [(f"10.0.{i >> 8}.{i & 255}", f"track{i % 977}") for i in range(n_keys)]
    numbers = zipf(n_benign, n_keys, 12)
    truth = np.bincount(numbers, minlength=n_keys)
    victims = range(n_keys - n_victims, n_keys)  # rare ones, where it shows
    tried = [(f"198.51.{i >> 8}.{i & 255}", "t") for i in range(60_000)]

    known = CountminSketch(epsilon, delta, WINDOWS_MS)
    tried_places = known.places(pair_fingerprints(other_secret, tried))
    victim_places = known.places(pair_fingerprints(other_secret, pairs)[list(victims)])
    built = [
        tried[int(np.flatnonzero(tried_places[:, row] == place)[0])]
        for places in victim_places
        for row, place in enumerate(places)
    ]
    near = [(pairs[v][0], pairs[v][1] + suffix) for v in victims for suffix in ("0", " ", "\0", "a")]
    sequential = [(f"203.0.113.{i & 255}", f"track{i}") for i in range(2_000)]
    n_attack = n_benign // 4
    attack = [
        *(built[i % len(built)] for i in range(n_attack * 8 // 10)),
        *(near[i % len(near)] for i in range(n_attack // 10)),
        *(sequential[i % len(sequential)] for i in range(n_attack // 10)),
    ]
    order = np.random.default_rng(13).permutation(n_benign + n_attack)
    over = {}
    for secret in (other_secret, SECRET):
        sketch = CountminSketch(epsilon, delta, WINDOWS_MS)
        keys = pair_fingerprints(secret, pairs)
        stream_keys = np.concatenate([keys[numbers], pair_fingerprints(secret, attack)])[order]
        sketch.add(stream_keys, START_MS + np.arange(len(order), dtype=np.int64))
        replies = sketch.read(keys, at(START_MS + len(order), n_keys), [DAY_MS])[:, 0]
        over[secret] = replies["estimate"] - truth
        bound = float(replies["bound"][0])
        assert bound == pytest.approx(len(order) * sketch.shape.error)
        assert over[secret].min() >= 0
    assert np.median(over[other_secret][list(victims)]) > bound  # with the secret known, it works
    assert (over[SECRET] > bound).mean() <= delta
    assert (over[SECRET][list(victims)] <= bound).all()
