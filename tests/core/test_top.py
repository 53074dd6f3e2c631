"""Heaviest values per window against an oracle that keeps every event: bounds always true, exact where said.

Streams come from a seed and a few shapes (bursts, ties, late events, values that take turns), because what
goes wrong here goes wrong after hundreds of events; Hypothesis chooses the settings, the shape and the seed.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.core.top import Tops, Value, Window, entropy_bounds, logarithms, packed

YEAR_1_MS = -62135596800000
YEAR_9999_MS = 253402300799999
LONG_AGO_MS = -(2**62)
FULL_EVENTS = 2**32 - 2
SMALL, LARGE = 8, 9


@dataclass(frozen=True)
class Settings:
    k: int = 3
    n_counters: int = 8
    exact_events: int = 16
    max_error: float = 0.1
    max_entries: int = 512
    max_text_bytes: int = 65536

    def tops(self, n: int = 1) -> Tops:
        return Tops(
            n,
            k=self.k,
            n_counters=self.n_counters,
            exact_events=self.exact_events,
            max_error=self.max_error,
            max_entries=self.max_entries,
            max_text_bytes=self.max_text_bytes,
        )


@dataclass(frozen=True)
class Event:
    time_ms: int
    value: int
    horizon_ms: int = LONG_AGO_MS

    @property
    def hash(self) -> int:
        return (self.value * 0x9E3779B97F4A7C15 + 1) % 2**64

    @property
    def text(self) -> bytes:
        return b"%d" % self.value


def add(tops: Tops, events: Iterable[Event], which: int = 0) -> int:
    events = list(events)
    texts = [event.text for event in events]
    return tops.add(
        np.full(len(events), which, np.uint32),
        np.array([event.hash for event in events], np.uint64),
        np.array([0, *itertools.accumulate(map(len, texts))], np.uint32),
        np.frombuffer(b"".join(texts), np.uint8),
        np.array([event.time_ms for event in events], np.int64),
        np.array([event.horizon_ms for event in events], np.int64),
    )


def add_one(tops: Tops, time_ms: int, hash_: int, text: bytes, horizon_ms: int = LONG_AGO_MS) -> int:
    return tops.add(
        np.array([0], np.uint32),
        np.array([hash_], np.uint64),
        np.array([0, len(text)], np.uint32),
        np.frombuffer(text, np.uint8),
        np.array([time_ms], np.int64),
        np.array([horizon_ms], np.int64),
    )


def read(
    tops: Tops, at_ms: int, windows_ms: Sequence[int], horizon_ms: int = LONG_AGO_MS, which: int = 0
) -> list[Window]:
    return tops.read(which, at_ms, horizon_ms, np.array(windows_ms, np.int64))


def entropy(counts: Iterable[int]) -> float:
    counts = [n for n in counts if n]
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts)


def check(window: Window, truth: Counter[int], k: int) -> None:
    """Holds one window to the true count of every hash."""
    n = truth.total()
    estimate, lower, upper = window.total
    assert lower <= n <= upper and lower <= estimate <= upper
    listed = {value.hash: value for value in window.listed}
    assert len(listed) == len(window.listed) <= k
    for hash_, value in listed.items():
        assert value.lower <= truth[hash_] <= value.upper, (value, truth[hash_])
        assert value.lower <= value.estimate <= value.upper and value.upper > 0
    if lower:  # there is an event, so the heaviest value has one; and no more values than events
        assert window.share[1] >= 1 / upper
        assert window.entropy[2] <= math.log2(min(k, upper)) + 2e-9
    assert all(count <= window.rest_upper for hash_, count in truth.items() if hash_ not in listed)
    order = [(-value.estimate, -value.lower, value.hash) for value in window.listed]
    assert order == sorted(order)
    if n == 0:
        if upper == 0:
            assert window.exact and not listed
            assert math.isnan(window.share[0]) and math.isnan(window.entropy[0])
        return
    top = sorted(truth.values(), reverse=True)[:k]
    for (value_, lower_, upper_), true in ((window.share, top[0] / n), (window.entropy, entropy(top))):
        assert lower_ <= true + 1e-12 and true - 1e-12 <= upper_ and lower_ <= value_ <= upper_
    if window.exact:
        assert estimate == lower == upper == n
        expected = sorted((-count, hash_) for hash_, count in truth.items())
        assert [(-value.lower, value.hash) for value in window.listed] == expected[:k]
        assert all(value.lower == value.estimate == value.upper for value in window.listed)
        assert window.rest_upper == (-expected[k][0] if len(expected) > k else 0)
        assert window.share == (top[0] / n,) * 3
        assert window.entropy[0] == window.entropy[1] == window.entropy[2]


@dataclass
class Oracle:
    """Every accepted event, and what was owed to it."""

    exact_events: int
    events: list[Event] = field(default_factory=list)
    horizon_ms: int = LONG_AGO_MS
    newest_ms: int = LONG_AGO_MS
    overflowed: bool = False
    disordered: bool = False

    def add(self, event: Event) -> None:
        self.horizon_ms = event.horizon_ms
        if event.time_ms < event.horizon_ms:
            return
        self.disordered |= event.time_ms < self.newest_ms
        self.newest_ms = max(self.newest_ms, event.time_ms)
        self.events.append(event)
        kept = sum(e.time_ms >= self.horizon_ms for e in self.events)
        self.overflowed |= kept > self.exact_events

    def truth(self, at_ms: int, window_ms: int) -> Counter[int]:
        return Counter(
            e.hash
            for e in self.events
            if at_ms - window_ms < e.time_ms <= at_ms and e.time_ms >= self.horizon_ms
        )


def stream(rng: random.Random, n: int, n_values: int, shape: str, keep_ms: int) -> list[Event]:
    """n events; the horizon follows the newest by keep_ms."""
    events: list[Event] = []
    now = start = rng.choice([0, -5_000, 1_700_000_000_000, YEAR_1_MS + 10_000, YEAR_9999_MS - 10**7])
    for i in range(n):
        value = min(int(rng.paretovariate(0.7)) - 1, n_values - 1)
        time_ms = now
        if shape == "ties":
            now += rng.random() < 0.05
            time_ms = now
        elif shape == "late":
            now += rng.randrange(4)
            time_ms = now - (rng.randrange(300) if rng.random() < 0.4 else 0)
        elif shape == "bursts":
            now += rng.choice([0, 0, 0, 1, 200])
            time_ms = now
        elif shape == "turns":
            now += 1
            time_ms = now
            value = (value + i // 60 * 3) % n_values
        else:
            now += rng.randrange(1, 5)
            time_ms = now
            value = rng.randrange(n_values)
        events.append(Event(max(time_ms, start - 500), value, max(now - keep_ms, LONG_AGO_MS)))
    return events


SHAPES = ["ties", "late", "bursts", "turns", "flat"]
any_settings = st.builds(
    Settings,
    k=st.sampled_from([1, 3, 8]),
    n_counters=st.sampled_from([8, 12, 40]),
    exact_events=st.sampled_from([1, 2, 5, 16, 30, 100]),
    max_error=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
    max_entries=st.sampled_from([16, 30, 512]),
    max_text_bytes=st.sampled_from([0, 30, 65536]),
)


def some_reads(rng: random.Random, oracle: Oracle) -> tuple[int, list[int]]:
    """A moment, mostly now, and windows whose edges are at events and next to them."""
    times = [event.time_ms for event in oracle.events[-400:]] or [0]
    at_ms = oracle.newest_ms + rng.choice([0, 0, 1, 50]) if rng.random() < 0.6 else rng.choice(times)
    edges = [rng.choice(times) + rng.choice([-1, 0, 0, 1]) for _ in range(3)] + [at_ms - 100_000]
    return at_ms, sorted(at_ms - edge for edge in edges if edge < at_ms)


@settings(max_examples=150)
@given(any_settings, st.sampled_from(SHAPES), st.sampled_from([2, 12, 200]), st.integers(0, 2**32))
def test_every_step_agrees_with_an_oracle_that_keeps_every_event(
    plan: Settings, shape: str, n_values: int, seed: int
) -> None:
    rng = random.Random(seed)
    tops, oracle = plan.tops(3), Oracle(plan.exact_events)
    n = rng.choice([30, 150, 400])
    for event in stream(rng, n, n_values, shape, keep_ms=rng.choice([40, 400, 10**6])):
        assert add(tops, [event]) == 0
        oracle.add(event)
        if rng.random() < 0.5:
            continue
        at_ms, windows_ms = some_reads(rng, oracle)
        for window, window_ms in zip(
            read(tops, at_ms, windows_ms, oracle.horizon_ms), windows_ms, strict=True
        ):
            truth = oracle.truth(at_ms, window_ms)
            check(window, truth, plan.k)
            if not oracle.overflowed:
                assert window.exact
            if not oracle.disordered and at_ms >= oracle.newest_ms:
                if truth.total() <= plan.exact_events // 2:
                    assert window.exact
                if plan.max_entries == 512:
                    assert abs(window.total[0] - truth.total()) <= plan.max_error * truth.total()
            for value in window.listed:
                assert value.text is None or Event(0, int(value.text)).hash == value.hash
                assert value.text is not None or plan.max_text_bytes < 65536
        assert tops.expired(0, oracle.newest_ms + 1)
        assert oracle.newest_ms < oracle.horizon_ms or not tops.expired(0, oracle.newest_ms)
        if rng.random() < 0.05:
            data = tops.export(0)
            assert tops.restore(1, data) == len(data) and tops.export(1) == data and len(data) % 8 == 0
            tops.clone(1, 2)
            tops.free(0)
            tops.clone(2, 0)
            assert tops.export(0) == data


@settings(max_examples=40)
@given(any_settings, st.sampled_from(SHAPES), st.integers(0, 2**32))
def test_a_copy_and_a_restored_one_go_on_as_the_original_however_events_are_batched(
    plan: Settings, shape: str, seed: int
) -> None:
    rng = random.Random(seed)
    tops, other = plan.tops(3), plan.tops(2)
    events = stream(rng, 600, 60, shape, keep_ms=rng.choice([100, 10**6]))
    cut = rng.randrange(1, len(events))
    add(tops, events[:cut])
    for which in (1, 2):
        assert tops.restore(which, tops.export(0)) if which == 1 else tops.clone(0, which) is None
    for event in events:  # in another arena, with others between
        add(other, [event])
        add(other, [Event(event.time_ms, 7)], which=1)
    for which in range(3):
        add(tops, events[cut:], which)
    assert tops.export(0) == tops.export(1) == tops.export(2) == other.export(0)


def test_reads_leave_no_trace() -> None:
    plan = Settings()
    tops = plan.tops()
    add(tops, stream(random.Random(1), 500, 50, "late", 10**6))
    before, used = tops.export(0), tops.used_bytes
    read(tops, 10**6, [1, 100, 10**7])
    assert tops.export(0) == before and tops.used_bytes == used


@pytest.mark.parametrize("n_before", [0, 3, 24, 40, 400])
def test_what_expired_is_absent_freed_or_not_and_the_rest_becomes_small_again(n_before: int) -> None:
    tops = Settings(exact_events=30).tops()
    add(tops, [Event(i, i % 7) for i in range(n_before)])
    one = Event(10_000, 3)
    add(tops, [one])
    (window,) = read(tops, 10_000, [20_000], horizon_ms=10_000)
    check(window, Counter([one.hash]), 3)
    assert window.total[1] == 1
    add(tops, [Event(10_001, 4, horizon_ms=10_000)])
    (window,) = read(tops, 10_001, [20_000], horizon_ms=10_000)
    check(window, Counter([one.hash, Event(0, 4).hash]), 3)
    # (A merged entry straddles the horizon until it leaves.)
    add(tops, [Event(10_000 + 2 * i, 4, horizon_ms=10_000 + i) for i in range(2, 300)])
    add(tops, [Event(20_000, 5, horizon_ms=20_000)])
    assert tops.counts(0)[:3] == (1, 1, 0) and tops.block_bytes(0) == 32
    (window,) = read(tops, 20_000, [20_000], horizon_ms=20_000)
    assert window.exact and [value.text for value in window.listed] == [b"5"]
    assert read(tops, 20_000, [20_000], horizon_ms=20_001)[0].total == (0, 0, 0)


@pytest.mark.parametrize("exact_events", [1, 2, 16])
@pytest.mark.parametrize("n_before", [1, 3, 40])
def test_what_expired_leaves_no_trace_whether_it_was_swept_or_not(exact_events: int, n_before: int) -> None:
    kept, fresh = Settings(exact_events=exact_events).tops(), Settings(exact_events=exact_events).tops()
    add(kept, [Event(i, i % 5) for i in range(n_before)])
    again = [Event(10_000 + i, 7, horizon_ms=5_000) for i in range(3)]
    add(kept, again)
    add(fresh, again)
    assert kept.export(0) == fresh.export(0)


def test_an_event_before_the_horizon_changes_nothing() -> None:
    tops = Settings().tops()
    add(tops, [Event(10, 1)])
    before = tops.export(0)
    assert add(tops, [Event(5, 2, horizon_ms=6)]) == 0
    assert tops.export(0) == before


@pytest.mark.parametrize("year_ms", [YEAR_1_MS, YEAR_9999_MS - 1_000])
@pytest.mark.parametrize("n", [3, 1_000])
def test_the_first_and_the_last_year(year_ms: int, n: int) -> None:
    tops, oracle = Settings().tops(), Oracle(16)
    for i in range(n):
        oracle.add(Event(year_ms + i, i % 5))
    add(tops, oracle.events)
    day_ms = 86_400_000
    for window, window_ms in zip(
        read(tops, year_ms + n, [1, 10, 400 * day_ms]), [1, 10, 400 * day_ms], strict=True
    ):
        check(window, oracle.truth(year_ms + n, window_ms), 3)


@pytest.mark.parametrize("n_others", [0, 30, 300])
@pytest.mark.parametrize("text", [b"", b"x", b"a" * 126, b"a" * 127, b"a" * 128, bytes(range(256)) * 16])
def test_texts_of_every_length_come_back(text: bytes, n_others: int) -> None:
    tops = Settings(k=1, exact_events=50).tops()
    for i in range(n_others + 3):
        add_one(tops, i, 77 if i % 2 == 0 else i, text if i % 2 == 0 else b"other")
    for which in (0, 0):
        (window,) = read(tops, n_others + 3, [10**6])
        assert window.listed[0].hash == 77 and window.listed[0].text == text
        assert tops.restore(which, tops.export(0)) > 0


@pytest.mark.parametrize("n_others", [0, 100])
def test_a_longer_text_is_known_by_its_hash(n_others: int) -> None:
    tops = Settings(k=1, exact_events=50).tops()
    add(tops, [Event(i, i) for i in range(n_others)])
    for i in range(3):
        add_one(tops, n_others + i, 77, b"a" * 4097)
    assert read(tops, n_others + 3, [10**6])[0].listed[0][:2] == (None, 77)


def test_a_text_past_the_cap_is_kept_when_there_is_room_and_it_comes_again() -> None:
    tops = Settings(k=2, exact_events=100, max_text_bytes=10).tops()
    add_one(tops, 1, 1, b"12345678")
    for t in (2, 3):
        add_one(tops, t, 2, b"abc")
    (window,) = read(tops, 3, [100])
    assert [value.text for value in window.listed] == [None, b"12345678"]
    add_one(tops, 4, 2, b"abc", horizon_ms=2)
    assert read(tops, 4, [100], 2)[0].listed == [Value(b"abc", 2, 3, 3, 3)]
    # The same in the large form, where an unused slot goes when the next collection comes.
    for t in range(5, 60):
        add_one(tops, t, 3 + t, b"x" * 7, horizon_ms=2)
    add_one(tops, 70, 3, b"abcdefg", horizon_ms=60)
    for t in range(71, 190):
        add_one(tops, t, 3 if t % 2 else 10**6 + t, b"abcdefg" if t % 2 else b"", horizon_ms=t - 40)
    (window,) = read(tops, 190, [30], 150)
    assert window.listed[0].text == b"abcdefg" and tops.counts(0)[4] <= 10


def test_in_the_large_form_a_text_comes_with_a_later_event_of_the_value() -> None:
    tops = Settings(k=2, exact_events=100, max_text_bytes=10).tops()
    for t in range(30):
        add_one(tops, t, 1, b"12345678")
    add_one(tops, 30, 2, b"abc")
    for t in range(31, 91):
        add_one(tops, t, 1_000 + t, b"", horizon_ms=30)
    assert read(tops, 30, [1], 30)[0].listed == [Value(None, 2, 1, 1, 1)]
    add_one(tops, 91, 2, b"abc", horizon_ms=30)
    assert read(tops, 91, [1], 30)[0].listed == [Value(b"abc", 2, 1, 1, 1)]


def test_two_texts_of_one_hash_are_one_value_shown_by_the_first() -> None:
    for n_others in (0, 40):
        tops = Settings(exact_events=100).tops()
        add(tops, [Event(0, i) for i in range(n_others)])
        for t, text in ((1, b"first"), (2, b"second"), (3, b"second")):
            add_one(tops, t, 5, text)
        assert read(tops, 3, [3])[0].listed == [Value(b"first", 5, 3, 3, 3)]


def test_hashes_that_fall_into_one_place_of_the_index_are_told_apart() -> None:
    tops = Settings(k=8, exact_events=300).tops()
    for i in range(200):
        add_one(tops, i, (i % 50) << 32, b"%d" % (i % 50))
    (window,) = read(tops, 200, [1000])
    assert window.exact and {value.lower for value in window.listed} == {4}
    assert all(int(value.text or b"") == value.hash >> 32 for value in window.listed)


def test_bytes_of_keys_that_saw_little() -> None:
    """What the head of top.pxd says."""
    for n, n_values, n_bytes in ((1, 1, 32), (3, 1, 48), (3, 3, 96), (24, 24, 688)):
        tops = Settings(exact_events=256).tops()
        for i in range(n):
            add_one(tops, i, i % n_values, b"t%09d" % (i % n_values))
        assert tops.block_bytes(0) == n_bytes


def test_blocks_are_given_back() -> None:
    tops = Settings(exact_events=64).tops(2)
    used = []
    for _ in range(3):
        add(tops, stream(random.Random(7), 3_000, 300, "late", 10**7))
        tops.clone(0, 1)
        tops.free(0)
        tops.free(1)
        used.append(tops.used_bytes)
    assert used[2] == used[1] <= 1.2 * used[0]
    assert tops.export(0) == b"" and tops.block_bytes(0) == 0


# -- what merged entries know --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Large:
    """The large form's bytes, taken apart: an independent reader of the format."""

    collect_at: int
    compact_at: int
    lost: tuple[int, int, int]
    times: list[int]
    entries: list[tuple[int, int, int, int, list[tuple[int, int, int]]]]
    slots: list[tuple[int, int]]
    raw: list[int]
    texts: bytes

    @classmethod
    def of(cls, data: bytes) -> Large:
        _, kind, zero, n_bytes = struct.unpack_from("<HBBI", data)
        assert (kind, zero) == (LARGE, 0) and len(data) == 8 + (n_bytes + 7) // 8 * 8
        n_raw, n_slots, n_entries, n_counters, collect_at, compact_at = struct.unpack_from("<6I", data, 8)
        lost = struct.unpack_from("<qqQ", data, 32)
        at = 56
        times = list(struct.unpack_from(f"<{n_raw}q", data, at))
        at += 8 * n_raw
        heads = [struct.unpack_from("<qqIIII", data, at + 32 * i) for i in range(n_entries)]
        at += 32 * n_entries
        entries = []
        for first, last, n, missed, n_own, _ in heads:
            own = [struct.unpack_from("<IHH", data, at + 8 * i) for i in range(n_own)]
            entries.append((first, last, n, missed, own))
            at += 8 * n_own
        assert sum(len(own) for *_, own in entries) == n_counters
        slots = [struct.unpack_from("<QI", data, at + 16 * i) for i in range(n_slots)]
        at += 16 * n_slots
        raw = list(struct.unpack_from(f"<{n_raw}H", data, at))
        return cls(
            collect_at, compact_at, lost, times, entries, slots, raw, data[at + 2 * n_raw : 8 + n_bytes]
        )

    def written(self) -> bytes:
        counters = [counter for *_, own in self.entries for counter in own]
        payload = struct.pack(
            "<6IqqQ", len(self.times), len(self.slots), len(self.entries), len(counters),
            self.collect_at, self.compact_at, *self.lost,
        )  # fmt: skip
        payload += struct.pack(f"<{len(self.times)}q", *self.times)
        payload += b"".join(struct.pack("<qqIIII", *head, len(own), 0) for *head, own in self.entries)
        payload += b"".join(struct.pack("<IHH", *counter) for counter in counters)
        payload += b"".join(struct.pack("<QII", *slot, 0) for slot in self.slots)
        payload += struct.pack(f"<{len(self.raw)}H", *self.raw) + self.texts
        return struct.pack("<HBBI", 0, LARGE, 0, len(payload)) + payload + bytes(-len(payload) % 8)


@settings(max_examples=40)
@given(st.sampled_from([8, 12, 40]), st.sampled_from(SHAPES), st.integers(0, 2**32))
def test_no_entry_misses_more_than_it_may_and_neighbours_weigh_what_they_must(
    n_counters: int, shape: str, seed: int
) -> None:
    rng = random.Random(seed)
    plan = Settings(n_counters=n_counters, exact_events=20, max_error=0.25)
    tops = plan.tops()
    add(tops, stream(rng, 5_000, rng.choice([20, 300, 5_000]), shape, 10**8))
    large = Large.of(tops.export(0))
    assert large.written() == tops.export(0)
    times = [t for first, last, *_ in large.entries for t in (first, last)] + large.times
    assert times == sorted(times)
    for _, _, n, missed, own in large.entries:
        assert missed <= 2 * n / n_counters
        assert missed + sum(known for known, _, _ in own) <= n
        assert missed == 0 or len(own) <= n_counters
    if shape != "late":
        newer = len(large.times)
        for first, last, n, _, _ in reversed(large.entries):
            assert first == last or n <= 2 * plan.max_error * newer
            newer += n


def test_a_key_of_few_values_loses_none_of_them() -> None:
    tops = Settings(k=8, exact_events=20).tops()
    events = [Event(i, 0 if i % 100 else 1 + i // 100 % 7) for i in range(10_000)]
    add(tops, events)
    (window,) = read(tops, 10_000, [10**6])
    assert window.exact
    check(window, Counter(event.hash for event in events), 8)


def test_at_the_cap_of_entries_bounds_are_wider_and_true() -> None:
    rng = random.Random(3)
    plan = Settings(exact_events=10, max_error=0.001, max_entries=16)
    tops, oracle = plan.tops(), Oracle(10)
    for event in stream(rng, 3_000, 30, "turns", 10**8):
        oracle.add(event)
    add(tops, oracle.events)
    assert tops.counts(0)[2] <= 16 + 4 + 8
    for window_ms in (5, 50, 500, 2_900):
        (window,) = read(tops, oracle.newest_ms, [window_ms])
        check(window, oracle.truth(oracle.newest_ms, window_ms), 3)


def test_late_events_between_entries_do_not_grow_it_without_end() -> None:
    plan = Settings(exact_events=10, max_error=0.0, max_entries=64)
    tops = plan.tops()
    add(tops, [Event(t, t % 9) for t in range(0, 10**6, 10_000)])
    rng = random.Random(5)
    add(tops, [Event(rng.randrange(10**6), rng.randrange(500)) for _ in range(20_000)])
    assert tops.counts(0)[2] <= 64 + 16 + 8
    assert read(tops, 10**6, [10**7])[0].total == (20_100, 20_100, 20_100)


def test_a_full_entry_counts_no_more_and_the_bounds_say_so() -> None:
    plan = Settings(exact_events=4)
    tops = plan.tops()
    large = Large(48, 8, (0, 0, 0), [50], [(10, 20, FULL_EVENTS, 5, [(FULL_EVENTS - 5, 0, 0)])],
                  [(9, 1), (10, 1)], [1], b"ab")  # fmt: skip
    assert tops.restore(0, large.written()) == len(large.written())
    (before,) = read(tops, 60, [55])
    assert before.total == (FULL_EVENTS + 1,) * 3
    assert add_one(tops, 15, 9, b"a") == 1 and add_one(tops, 18, 11, b"c") == 1
    assert add_one(tops, 60, 9, b"a") == 0
    recent, whole = read(tops, 60, [5, 55])
    assert recent.exact and recent.total == (1, 1, 1)
    assert whole.total[1:] == (FULL_EVENTS + 2, FULL_EVENTS + 4)
    assert whole.listed[0].hash == 9 and whole.listed[0].upper >= FULL_EVENTS + 3 - 5
    assert whole.rest_upper >= 2 and not whole.exact
    data = tops.export(0)
    assert tops.restore(0, data) == len(data) and read(tops, 60, [5, 55]) == [recent, whole]
    # Full entries do not merge, and what was lost leaves when it expires.
    add(tops, [Event(t, 1, horizon_ms=19) for t in range(100, 200)])
    (window,) = read(tops, 300, [290], 19)
    assert window.total[1] >= 101
    add(tops, [Event(300, 1, horizon_ms=90)])
    assert Large.of(tops.export(0)).lost == (0, 0, 0)


# -- bytes that others wrote ---------------------------------------------------------------------------------


def exported(plan: Settings, n: int, shape: str) -> bytes:
    tops = plan.tops()
    add(tops, stream(random.Random(n), n, 30, shape, 10**8))
    return tops.export(0)


@pytest.mark.parametrize(("n", "shape"), [(5, "flat"), (40, "late"), (300, "turns")])
def test_changed_bytes_are_refused_or_are_another_structure_that_works(n: int, shape: str) -> None:
    plan = Settings()
    data = exported(plan, n, shape)
    tops, rng = plan.tops(), random.Random(9)
    for length in range(len(data)):
        assert tops.restore(0, data[:length]) == 0 and tops.export(0) == b""
    assert tops.restore(0, data + b"more") == len(data)
    refused = 0
    for at in range(len(data)):
        for _ in range(4):
            changed = bytearray(data)
            changed[at] = rng.choice([0, 1, 127, 128, 255, changed[at] ^ 1 << rng.randrange(8)])
            consumed = tops.restore(0, changed)
            refused += consumed == 0
            if consumed:
                assert tops.export(0) == bytes(changed[:consumed])
                for window in read(tops, rng.randrange(-100, 3_000), [10, 1_000, 10**17]):
                    assert window.total[1] <= window.total[2]
                add(tops, [Event(rng.randrange(3_000), rng.randrange(50)) for _ in range(40)])
    assert refused > len(data) // 4


def test_numbers_that_cannot_be_are_refused() -> None:
    good = Large.of(exported(Settings(), 300, "turns"))
    first = good.entries[0]
    slot = good.slots[0]
    cases = {
        "an entry of nothing": {"entries": [(0, 0, 0, 0, []), *good.entries]},
        "an entry that ends before it begins": {"entries": [(9, 8, 2, 0, []), *good.entries]},
        "more missed than there is": {"entries": [(*first[:3], first[2] + 1, first[4]), *good.entries[1:]]},
        "a counter of nothing": {"entries": [(*first[:4], [(0, 0, 0)]), *good.entries[1:]]},
        "a counter of no slot": {"entries": [(*first[:4], [(1, len(good.slots), 0)]), *good.entries[1:]]},
        "counters out of order": {"entries": [(*first[:4], first[4][::-1]), *good.entries[1:]]},
        "entries out of order": {"entries": good.entries[::-1]},
        "a value twice": {"slots": [slot, *good.slots[:1], *good.slots[2:]]},
        "RAW before what was merged": {"times": [-10, *good.times[1:]]},
        "RAW out of order": {"times": good.times[::-1]},
        "RAW of no slot": {"raw": [len(good.slots), *good.raw[1:]]},
        "more RAW than may be": {"times": [good.times[-1]] * 17, "raw": [0] * 17},
        "a compaction that never comes": {"compact_at": 2**32 - 1},
        "texts that are not there": {"slots": [(slot[0], slot[1] + 1), *good.slots[1:]]},
        "texts of nobody": {"texts": good.texts + b"x"},
        "too much lost": {"lost": (0, 1, 2**63)},
        "lost at no time": {"lost": (1, 0, 1)},
    }
    tops = Settings().tops()
    assert len(first[4]) > 1
    for what, changed in cases.items():
        assert tops.restore(0, Large(**{**vars(good), **changed}).written()) == 0, what
    assert tops.restore(0, Large(**vars(good)).written()) > 0


def test_a_structure_of_other_settings_is_refused() -> None:
    data = exported(Settings(n_counters=40, exact_events=30), 500, "flat")
    assert Settings(n_counters=8, exact_events=30).tops().restore(0, data) == 0
    assert Settings(n_counters=40, exact_events=10).tops().restore(0, data) == 0
    assert Settings(n_counters=40, exact_events=30, max_text_bytes=5).tops().restore(0, data) == 0
    assert Settings(n_counters=40, exact_events=30).tops().restore(0, data) == len(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0}, {"k": 9}, {"k": 65, "n_counters": 100}, {"k": 7, "n_counters": 7},
        {"n_counters": 513, "max_entries": 20},
        {"exact_events": 0}, {"exact_events": 65_535}, {"max_error": -0.1}, {"max_error": 0.6},
        {"max_error": math.nan}, {"max_entries": 15}, {"max_entries": 7_000}, {"max_text_bytes": 2**31},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_served_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cannot be served"):
        Settings(**{"k": 8, **wrong}).tops()  # type: ignore[arg-type]


def test_the_most_values_that_settings_can_need_fit() -> None:
    plan = Settings(k=1, n_counters=512, exact_events=20_000, max_entries=60, max_error=0.0)
    tops = plan.tops()
    add(tops, [Event(t, t) for t in range(200_000)])
    assert 20_000 < tops.counts(0)[1] <= 65_535
    (window,) = read(tops, 200_000, [10**6])
    assert window.total[1] == 200_000 and window.rest_upper <= 2 * 200_000 / 512


# -- numbers -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_what_was_missed_is_rounded_up_and_little(x: int) -> None:
    code, number = packed(x)
    assert x <= number <= max(x, x * (1 + 2**-11))
    assert number == 2**32 - 1 or packed(number) == (code, number)
    assert x == 0 or packed(x - 1)[0] <= code


def test_the_greatest_number_missed() -> None:
    assert packed(4095)[1] == 4095 and packed(2**32 - 1)[1] == 2**32 - 1


BITS_OF_LOGARITHMS = [
    "0x1.95c01a39fbd69p+0",
    "0x1.2934f0979a371p+1",
    "0x1.675767f54042dp+1",
    "0x1.a934f0979a371p+1",
    "0x1.3ee7b471b3a95p+4",
    "0x1.ae12262b7b9fcp+4",
    "-0x1.a934f0979a371p+1",
]
NEAR_1 = st.builds(
    lambda exponent, sign: 1 + sign * 2.0**-exponent, st.integers(1, 52), st.sampled_from([-1, 1])
)


@settings(max_examples=500)
@given(
    st.one_of(
        st.integers(1, 2**62).map(float),
        st.floats(2**-60, 2**60, allow_subnormal=False),
        NEAR_1,
        st.sampled_from([0.7071067811865475, 0.7071067811865476, 1.414213562373095, 1.4142135623730951]),
    )
)
def test_logarithms_are_within_5e_16_of_what_decimals_say(x: float) -> None:
    (got,) = logarithms(np.array([x]))
    with localcontext(prec=40):
        exact = Decimal(x).ln() / Decimal(2).ln()
        assert abs(Decimal(got) - exact) <= Decimal("5e-16") * abs(exact)
    for power in range(-60, 63):
        assert logarithms(np.array([2.0**power])) == [power]


def test_logarithms_have_the_same_bits_everywhere() -> None:
    """What a machine of another kind must say too: nothing in them depends on its C library."""
    found = logarithms(np.array([3.0, 5.0, 7.0, 10.0, 1e6, 123456789.0, 0.1]))
    assert [each.hex() for each in found] == BITS_OF_LOGARITHMS


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=4))
def test_entropy_bounds_hold_for_every_count_within_and_the_lower_is_met(
    boxes: list[tuple[int, int]],
) -> None:
    lower = sorted((lo for lo, _ in boxes), reverse=True)
    upper = sorted((lo + more for lo, more in boxes), reverse=True)
    least, most = entropy_bounds(np.array(lower, np.uint64), np.array(upper, np.uint64))
    found = [
        entropy(counts)
        for counts in itertools.product(*(range(lo, hi + 1) for lo, hi in zip(lower, upper, strict=True)))
        if sum(counts)
    ]
    if found:
        assert min(found) == pytest.approx(least, abs=1e-9)
        assert max(found) <= most + 1e-9
        assert most <= math.log2(len(boxes)) + 1e-12
