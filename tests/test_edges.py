"""Edges by name, with values counted by hand, and laws: replay, restart and batching change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference.both import Both
from reference.compare import Got
from reference.engine import Engine
from reference.naive import (
    ACCEPTED,
    BAD_KEY,
    HOUR_MS,
    KEY_TOO_LONG,
    LATE,
    NOT_FINITE,
    NOT_FOUND,
    PRESENT,
    TIME_RANGE,
    UNAVAILABLE,
    WARMING,
    Derived,
    EventType,
    Row,
    Schema,
    View,
)
from reference.written import Formula, features, yaml

EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999
AGGREGATES = ("sum", "mean", "min", "max", "stddev", "first", "last")


def opened(
    *what: Any,
    lateness_ms: int = HOUR_MS,
    clock: str = "event",
    kind: EventType | None = None,
    **options: Any,
) -> Both:
    """A store with one view `v` of the features `what` (default: counts over 10 s and 60 s) per key `k`."""
    kind = kind or EventType({"k": "key", "x": "number"}, lateness_ms)
    declared = tuple(feature for group in what or (features("count", "10s 60s"),) for feature in group)
    view = View("e", {"k": "k"}, declared, **options)
    return Both(Schema({"e": kind}, {"v": view}, {"s": [f"v.{f.name}" for f in declared]}), clock=clock)


def at(time: int, key: object = "a", x: object = 1.0) -> Row:
    return Row(time, {"k": key, "x": x})


def read(store: Both, as_of: int | None = None, key: object = "a", **options: Any) -> dict[str, Got]:
    _, vectors = store.read("s", {"k": key}, as_of=as_of, **options)
    return {name.removeprefix("v."): got for name, got in vectors.got(0)}


def values(store: Both, as_of: int, key: object = "a") -> list[float]:
    return [got.value for got in read(store, as_of, key).values()]


# Windows


@pytest.mark.parametrize("start_ms", [0, 1_700_000_000_000, -1_700_000_000_123])
def test_a_window_excludes_its_left_edge_and_includes_its_right(start_ms: int) -> None:
    store = opened()
    store.submit("e", [at(start_ms)])
    edges = {-1: 0, 0: 1, 9_999: 1, 10_000: 0}
    assert {t: read(store, start_ms + t)["count_10s"].value for t in edges} == edges


def test_an_offset_window_excludes_its_left_edge_and_includes_its_right() -> None:
    store = opened(features("count", "10s"), offset_ms=7_000)
    store.submit("e", [at(0)])
    edges = {6_999: 0, 7_000: 1, 16_999: 1, 17_000: 0}
    assert {t: values(store, t)[0] for t in edges} == edges


def test_a_window_counts_equal_times_each() -> None:
    store = opened(
        features("count", "10s"), features("first", "10s", value="x"), features("last", "10s", value="x")
    )
    store.submit("e", [at(5, x=1), at(5, x=2), at(5, x=3)])
    assert values(store, 5) == [3, 1, 3]


def test_idle_longer_than_the_window_leaves_nothing_and_starts_anew() -> None:
    store = opened(
        features("count", "10s"), features("sum", "10s", value="x"), features("mean", "10s", value="x")
    )
    store.submit("e", [at(t) for t in range(50)])
    store.submit("e", [at(10 * HOUR_MS, "b")])
    got = read(store, 10 * HOUR_MS)
    assert {name: one.status for name, one in got.items()} == dict.fromkeys(got, NOT_FOUND)
    assert (got["count_10s"].value, got["sum_x_10s"].value) == (0, 0)
    assert math.isnan(got["mean_x_10s"].value)
    store.submit("e", [at(10 * HOUR_MS + 1)])
    assert values(store, 10 * HOUR_MS + 1) == [1, 1, 1]


def test_idle_longer_than_all_kept_makes_a_merged_log_exact_again() -> None:
    store = opened(exact_events=4, max_error=0.5, max_entries=16, lateness_ms=0)
    store.submit("e", [at(t) for t in range(0, 50_000, 100)])
    assert read(store, 49_900)["count_60s"].lower <= 500
    store.submit("e", [at(10 * HOUR_MS + t) for t in range(4)])
    got = read(store, 10 * HOUR_MS + 3)["count_60s"]
    assert (got.lower, got.value, got.upper) == (4, 4, 4)


def test_a_read_in_the_past_is_answered_while_its_window_is_kept() -> None:
    store = opened(features("count", "10s"), lateness_ms=20_000)
    store.submit("e", [at(t) for t in range(0, 100_000, 1_000)])
    # Kept: 30 s behind 99 s, so a window of 10 s may end at 79 s but not before.
    assert (read(store, 79_000)["count_10s"].status, read(store, 79_000)["count_10s"].value) == (PRESENT, 10)
    assert read(store, 78_999)["count_10s"].status == UNAVAILABLE


# The clock


def test_the_wall_clock_turning_back_refuses_nothing_and_frees_nothing() -> None:
    store = opened(lateness_ms=0, clock="wall")
    store.submit("e", [at(100_000)], now_ms=100_000)
    answers, _ = store.submit("e", [at(40_000), at(39_999), at(100_001)], now_ms=10_000)
    assert [answer.outcome for answer in answers] == [ACCEPTED, LATE, ACCEPTED]
    assert read(store, now_ms=5_000)["count_60s"].value == 1
    assert read(store, 100_001, now_ms=5_000)["count_60s"].value == 2


def test_the_event_clock_does_not_move_for_a_late_or_refused_event() -> None:
    store = opened(lateness_ms=0)
    store.submit("e", [at(100_000), at(LATEST_MS + 1), at(LATEST_MS, x=math.inf), at(39_999), at(40_000)])
    assert read(store)["count_60s"].value == 1
    assert store.engine.state.nows_ms == {"e": 100_000}


# Late events


def test_a_late_event_counts_at_its_own_time_while_nothing_is_merged() -> None:
    store = opened(
        features("count", "10s"), features("first", "10s", value="x"), features("last", "10s", value="x")
    )
    store.submit("e", [at(1_000, x=1), at(9_000, x=9), at(500, x=0), at(5_000, x=5)])
    assert values(store, 9_000) == [4, 0, 9]
    assert values(store, 10_500) == [3, 1, 9]


def test_a_late_event_into_a_merged_entry_stays_within_the_bounds() -> None:
    store = opened(
        features("count", "10s 60s"),
        *(features(name, "10s 60s", value="x") for name in AGGREGATES),
        exact_events=4,
        max_error=0.5,
    )
    store.submit("e", [at(100 * t, x=t % 7) for t in range(300)])
    for late in (50, 4_321, 15_000, 29_850, 0):
        store.submit("e", [at(late, x=50), at(late, x=-50)])
        for as_of in (late, late + 9_999, 29_900, 31_000, 60_000):
            read(store, as_of)
    assert read(store, 29_900)["min_x_60s"].lower <= -50


def test_a_saturated_log_says_so_in_its_bounds() -> None:
    store = opened(features("count", "10s 60s"), exact_events=8, max_error=0.01, max_entries=8)
    rng = np.random.default_rng(7)
    times = np.sort(rng.integers(0, 60_000, 1_000))
    store.submit("e", [at(int(t)) for t in times])
    width = []
    for as_of in range(60_000, 119_000, 1_777):
        got = read(store, as_of)["count_60s"]
        assert got.lower <= int((times > as_of - 60_000).sum()) <= got.upper
        width.append(got.upper - got.lower)
    assert max(width) > 30, "eight entries cannot know a thousand events to 1 %"


# Keys


@pytest.mark.parametrize("key", ["", None])
def test_an_empty_or_null_key_is_skipped_and_unavailable(key: object) -> None:
    store = opened()
    answers, vectors = store.submit("e", [at(0, key)], "s")
    assert answers[0].outcome == ACCEPTED
    assert vectors is not None
    assert (vectors.statuses == UNAVAILABLE).all()
    assert np.isnan(vectors.values).all()
    assert read(store, 0, key)["count_10s"].status == UNAVAILABLE


def test_the_longest_key_is_kept_whole_and_one_byte_more_is_refused() -> None:
    store = opened()
    longest = "é" * 2_047 + "xy"
    answers, _ = store.submit("e", [at(0, longest), at(0, longest[:-1] + "z"), at(0, longest + "z")])
    assert [answer.outcome for answer in answers] == [ACCEPTED, ACCEPTED, KEY_TOO_LONG]
    assert values(store, 0, longest) == [1, 1]


def test_a_string_that_is_too_long_is_cut_and_its_event_counts() -> None:
    kind = EventType({"k": "key", "x": "number", "agent": "string"})
    store = opened(features("count", "10s"), kind=kind)
    padded = "é" * 2_047 + "x🎧" + "y" * 100_000
    answers, _ = store.submit("e", [Row(0, {"k": "a", "x": 1.0, "agent": padded})])
    assert [answer.outcome for answer in answers] == [ACCEPTED]
    assert values(store, 0) == [1]


def test_one_part_of_a_key_does_not_run_into_the_next() -> None:
    view = View("e", {"k": "k", "q": "q"}, features("count", "10s"))
    kind = EventType({"k": "key", "q": "key"})
    store = Both(Schema({"e": kind}, {"v": view}, {"s": ["v.count_10s"]}))
    store.submit(
        "e", [Row(0, {"k": "ab", "q": "c"}), Row(0, {"k": "a", "q": "bc"}), Row(0, {"k": "c", "q": "ab"})]
    )
    for k, q, n in (("ab", "c", 1), ("a", "bc", 1), ("abc", "", 0), ("c", "ab", 1), ("ab", "ab", 0)):
        _, vectors = store.read("s", {"k": k, "q": q}, as_of=0)
        assert vectors.values[0, 0] == n or (q == "" and vectors.statuses[0, 0] == UNAVAILABLE)


def test_an_integer_and_its_text_are_one_key_and_a_fraction_is_none() -> None:
    store = opened()
    answers, _ = store.submit("e", [at(0, 596), at(0, "596"), at(0, 596.0), at(0, "596.0"), at(0, 596.5)])
    assert [answer.outcome for answer in answers] == [ACCEPTED] * 4 + [BAD_KEY]
    assert values(store, 0, "596") == [3, 3]


# Values


def test_nan_and_infinity_refuse_the_event_and_absent_does_not() -> None:
    store = opened(features("count", "10s"), features("mean", "10s", value="x"))
    answers, _ = store.submit("e", [at(0, x=x) for x in (math.nan, math.inf, -math.inf, None, 4.0)])
    assert [answer.outcome for answer in answers] == [NOT_FINITE] * 3 + [ACCEPTED] * 2
    assert values(store, 0) == [2, 4]


@pytest.mark.parametrize("merging", [{}, {"exact_events": 4, "max_error": 0.5, "max_entries": 16}])
def test_a_sum_that_no_double_holds_cannot_be_answered_until_it_has_passed(merging: dict[str, Any]) -> None:
    summed = ("sum", "mean", "stddev")
    declared = [
        *(feature for name in summed for feature in features(name, "10s lifetime", value="x")),
        *(feature for name in ("max", "last") for feature in features(name, "10s", value="x")),
        *(feature for name in ("decayed_sum", "decayed_mean") for feature in features(name, "1s", value="x")),
        *features("count", "10s"),
    ]
    view = View("e", {"k": "k"}, tuple(declared), **merging)
    kind = EventType({"k": "key", "x": "number"}, 0)
    fourfold = Derived(("v.max_x_10s",), Formula("v.max_x_10s * 4", lambda x: x * 4))
    names = [f"v.{feature.name}" for feature in declared]
    schema = Schema({"e": kind}, {"v": view}, {"s": [*names, "v.fourfold"]}, derived={"v.fourfold": fourfold})
    store = Engine(yaml(schema))

    def read_at(as_of: int) -> dict[str, Got]:
        return {
            name.removeprefix("v."): got for name, got in store.read("s", {"k": ["a"]}, as_of=as_of).got(0)
        }

    store.submit("e", {"ts": [-60_000], "k": ["b"], "x": [0.0]})  # so that no window is WARMING
    store.submit("e", {"ts": range(0, 2000, 50), "k": ["a"] * 40, "x": [1e308, -1e308] * 20})
    got = read_at(1950)
    answered = {name: one.value for name, one in got.items() if one.status == PRESENT}
    assert answered == {"max_x_10s": 1e308, "last_x_10s": -1e308, "count_10s": 40}
    for name in got.keys() - answered.keys():
        bounds = (got[name].lower, got[name].value, got[name].upper)
        assert (got[name].status, got[name].coverage) == (UNAVAILABLE, 0)
        assert all(map(math.isnan, bounds)), name
    for as_of in range(10_000, 12_000, 30):  # whatever the window's edge goes across
        for one in read_at(as_of).values():
            if one.status == PRESENT:
                assert math.isfinite(one.value)
                assert one.lower <= one.value <= one.upper
    store.submit("e", {"ts": [30_000], "k": ["a"], "x": [3.0]})
    got = read_at(30_000)
    assert {got[f"{name}_x_10s"].status for name in summed} == {PRESENT}
    assert [got[f"{name}_x_10s"].value for name in summed] == [3, 3, 0]
    assert {got[f"{name}_x_lifetime"].status for name in summed} == {UNAVAILABLE}
    assert got["fourfold"].value == 12


def test_negative_values_in_every_aggregate_exact_and_merged() -> None:
    what = [features(name, "60s", value="x") for name in AGGREGATES]
    exact = opened(*what)
    exact.submit("e", [at(t, x=x) for t, x in enumerate((-3, 5, -8, 2, -1))])
    assert values(exact, 4) == pytest.approx([-5, -1, -8, 5, math.sqrt(103 / 5 - 1), -3, -1])
    merged = opened(*what, features("count", "60s"), exact_events=1, max_error=0.2)
    merged.submit("e", [at(50 * t, x=(-1) ** t * (t % 11)) for t in range(400)])
    for as_of in range(20_000, 81_000, 777):
        read(merged, as_of)


def test_a_sum_that_cancels_is_exact_in_both_its_parts() -> None:
    store = opened(features("sum", "10s lifetime", value="x"))
    store.submit("e", [at(0, x=1e15), at(1, x=0.125), at(2, x=-1e15)])
    assert values(store, 2) == [0.125, 0.125]


def test_one_event_has_no_deviation() -> None:
    store = opened(features("stddev", "10s lifetime", value="x"))
    store.submit("e", [at(0, x=0.1)])
    assert values(store, 0) == [0, 0]


@pytest.mark.parametrize("start_ms", [-315_619_200_000, 10_413_792_000_000], ids=["1960", "2300"])
@pytest.mark.parametrize("clock", ["event", "wall"])
def test_the_years_1960_and_2300_are_times_like_others(start_ms: int, clock: str) -> None:
    store = opened(
        features("count", "10s lifetime"),
        features("since_first", "60s"),
        features("since_last", "60s"),
        clock=clock,
    )
    now = {"now_ms": start_ms + 30_000} if clock == "wall" else {}
    store.submit("e", [at(start_ms), at(start_ms + 20_000), at(start_ms + 30_000)], **now)
    got = read(store, start_ms + 30_000, **now)
    assert [one.value for one in got.values()] == [1, 3, 30_000, 0]
    assert got["count_10s"].status == (PRESENT if clock == "event" else WARMING)
    assert (got["count_lifetime"].status, got["count_lifetime"].coverage) == (WARMING, 0)


def test_the_first_and_the_last_millisecond_are_accepted_and_nothing_beyond() -> None:
    for edge, beyond in ((EARLIEST_MS, EARLIEST_MS - 1), (LATEST_MS, LATEST_MS + 1)):
        store = opened()
        answers, _ = store.submit("e", [at(edge), at(beyond)])
        assert [answer.outcome for answer in answers] == [ACCEPTED, TIME_RANGE]
        assert values(store, edge) == [1, 1]


# Statuses


def test_warming_tells_the_covered_share_and_then_ends() -> None:
    store = opened()
    store.submit("e", [at(0)])
    assert read(store, 0)["count_60s"].coverage == np.float32(1 / 60_000)
    shares = []
    for t in (14_999, 59_998, 59_999):
        store.submit("e", [at(t, key="b")])
        shares.append(read(store, t)["count_60s"])
    assert [one.status for one in shares] == [WARMING, WARMING, PRESENT]
    assert [one.coverage for one in shares] == [0.25, np.float32(59_999 / 60_000), 1]
    ahead = [read(store, t)["count_60s"] for t in (60_000, 74_999, 200_000)]  # of the clock
    assert [one.status for one in ahead] == [WARMING] * 3
    assert [one.coverage for one in ahead] == [np.float32(59_999 / 60_000), 0.75, 0]


def test_a_short_window_does_not_answer_for_a_span_that_was_dropped_before_its_view_kept_longer() -> None:
    store = opened(features("count", "10s"), lateness_ms=0)
    store.submit("e", [at(0), at(45_000), at(100_000)])
    view = replace(store.naive.views["v"].plan, features=features("count", "10s 200s"))
    store.apply(Schema(store.naive.schema.events, {"v": view}, {"s": ["v.count_10s", "v.count_200s"]}))
    # Kept were 10 s; the event at 45 s is gone, although the view now keeps 200 s.
    assert (read(store, 50_000)["count_10s"].status, read(store, 50_000)["count_10s"].coverage) == (
        WARMING,
        0,
    )
    got = read(store, 100_000)
    assert (got["count_10s"].status, got["count_200s"].status) == (PRESENT, WARMING)


def with_ids(clock: str) -> tuple[Both, dict[str, int], Row]:
    """A store with ids that never accepted anything, the options of a batch, and an event it refuses."""
    store = opened(clock=clock, kind=EventType({"k": "key", "id": "string"}, id_field="id"))
    return store, {"now_ms": 1_000_000} if clock == "wall" else {}, Row(1_005_000, {"k": "a"})


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_a_refused_event_starts_no_warming_when_peeked_at(clock: str) -> None:
    store, now, refused = with_ids(clock)
    peeked = store.peek("e", refused, "s", **now)
    _, observed = store.submit("e", [refused], "s", **now)
    assert observed is not None
    assert peeked.bits() == observed.bits()


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_a_refused_event_reads_the_same_whether_or_not_its_batch_goes_on(clock: str) -> None:
    store, now, refused = with_ids(clock)
    accepted = Row(999_000, {"k": "a", "id": "1"})
    _, together = store.submit("e", [refused, accepted], "s", **now)
    assert together is not None
    assert (together.coverage[0] == 0).all(), "nothing was accepted yet when it was read"


def test_self_exclude_reads_the_row_just_before_the_event() -> None:
    store = opened(
        features("count", "10s"),
        features("count", "10s", name="others", exclude_self=True),
        features("since_last", "10s"),
        features("since_last", "10s", name="since_any", exclude_self=False),
    )
    _, vectors = store.submit("e", [at(0), at(300), at(300)], "s")
    assert vectors is not None
    assert vectors.values[1:].tolist() == [[2, 1, 300, 0], [3, 2, 0, 0]]
    assert vectors.values[0, [0, 1, 3]].tolist() == [1, 0, 0]
    assert np.isnan(vectors.values[0, 2])


# Laws


def mixed(n: int) -> list[Row]:
    """Out of order, over few keys, now and then idle: times in ms."""
    rng = np.random.default_rng(n)
    clock = np.cumsum(rng.integers(0, 400, n) + 30_000 * (rng.random(n) < 0.01))
    late = rng.integers(0, 20_000, n) * (rng.random(n) < 0.3)
    return [
        at(int(t), f"k{key}", None if x == 0 else float(x))
        for t, key, x in zip(clock - late, rng.zipf(1.7, n) % 20, rng.integers(-3, 9, n), strict=True)
    ]


ALL = (
    features("count", "10s 60s lifetime"),
    *(features(name, "60s lifetime", value="x") for name in AGGREGATES),
)


def lived(rows: list[Row], cuts: list[int], *, restart: bool = False, **options: Any) -> Engine:
    store = opened(*ALL, exact_events=8, max_error=0.1, max_entries=32, lateness_ms=5_000)
    engine = store.replayed([1], **options)
    start = 0
    for turn in range(len(rows)):
        size = cuts[turn % len(cuts)]
        piece = rows[start : start + size]
        if not piece:
            break
        engine.submit(
            "e",
            {
                "ts": [r.time for r in piece],
                "k": [r.fields["k"] for r in piece],
                "x": [r.fields["x"] for r in piece],
            },
        )
        if restart and turn % 3 == 0:
            engine.restart(threads=1 + turn % 2)
        start += size
    return engine


@pytest.mark.parametrize("other", [{"cuts": [1]}, {"cuts": [7, 200, 1]}, {"cuts": [500], "threads": 4}])
def test_batches_cut_anywhere_on_any_number_of_threads_are_one_batch(other: dict[str, Any]) -> None:
    rows = mixed(1_500)
    whole = lived(rows, [len(rows)], threads=1)
    assert lived(rows, **({"threads": 1} | other)).state.digest() == whole.state.digest()


def test_restarting_between_batches_is_not_restarting() -> None:
    rows = mixed(1_500)
    assert (
        lived(rows, [100], threads=1, restart=True).state.digest()
        == lived(rows, [100], threads=1).state.digest()
    )


def test_reading_changes_nothing() -> None:
    engine = lived(mixed(800), [800], threads=1)
    before = engine.state.digest()
    for as_of in (None, 0, 10_000, LATEST_MS, EARLIEST_MS):
        engine.read("s", {"k": ["k1", "k2", "never", None]}, 4, as_of=as_of)
    assert engine.state.digest() == before


def test_different_events_differ_in_the_digest() -> None:
    rows = mixed(50)
    other = [*rows[:-1], at(rows[-1].time or 0, rows[-1].fields["k"], 5.5)]
    assert lived(rows, [50], threads=1).state.digest() != lived(other, [50], threads=1).state.digest()


def test_whole_histories_agree_with_the_naive_store() -> None:
    store = opened(*ALL, exact_events=8, max_error=0.1, lateness_ms=5_000)
    rows = mixed(600)
    for start in range(0, len(rows), 50):
        store.submit("e", rows[start : start + 50], "s")
    for key in ("k0", "k1", "k2", "never"):
        read(store, None, key)
