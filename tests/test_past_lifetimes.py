"""Lifetimes as of a time before the key's newest event: all of it, less what the log says came later.

The naive store knows every event; each value of each read is held against it (reference.both).
"""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest
from reference.both import Both
from reference.compare import Got
from reference.naive import (
    DAY_MS,
    HOUR_MS,
    NOT_FOUND,
    PRESENT,
    UNAVAILABLE,
    EventType,
    Feature,
    Row,
    Schema,
    View,
)
from reference.written import Filter, features

START_MS = 1_700_000_000_000
KIND = EventType({"k": "key", "x": "number"}, lateness_ms=HOUR_MS, from_beginning=True)
UP = Filter("x > 0", lambda f: None if f["x"] is None else f["x"] > 0)  # type: ignore[operator]
AGGREGATES = ("sum", "mean", "min", "max", "stddev", "first", "last")


def ever(windows: str = "60s lifetime", **more: object) -> tuple[Feature, ...]:
    return (
        features("count", windows)
        + features("count", "lifetime", where=UP, name="ups")
        + tuple(f for name in AGGREGATES for f in features(name, "lifetime", value="x"))
        + tuple(
            feature
            for name in AGGREGATES
            for feature in features(name, "lifetime", value="x", where=UP, name=f"up_{name}")
        )
        + tuple(f for name in ("since_first", "since_last") for f in features(name, "lifetime"))
        + features("since_last", "lifetime", where=UP, name="since_up")
        + features("since_first", "lifetime", where=UP, name="since_first_up")
    )  # fmt: skip


def schema_of(view: View, kind: EventType = KIND) -> Schema:
    return Schema({"e": kind}, {"v": view}, {"s": [f"v.{feature.name}" for feature in view.features]})


def row(time_ms: int, x: float | None = 1.0, key: str = "a") -> Row:
    return Row(time_ms, {"k": key, "x": x})


def read(store: Both, as_of: int, **now: int) -> dict[str, Got]:
    _, vectors = store.read("s", {"k": "a"}, as_of=as_of, **now)
    return {name.removeprefix("v.").removesuffix("_lifetime"): got for name, got in vectors.got(0)}


def test_an_event_a_millisecond_out_of_order_is_not_unknown() -> None:
    """While the log has all events of a key, it says what they were."""
    store = Both(schema_of(View("e", {"k": "k"}, ever())))
    store.submit("e", [row(START_MS + i, float(i)) for i in range(10)])
    _, vectors = store.submit("e", [row(START_MS + 8, 5.0)], "s")
    assert vectors is not None
    got = {name.removeprefix("v."): each for name, each in vectors.got(0)}
    assert {each.status for each in got.values()} == {PRESENT}
    assert all(each.lower == each.value == each.upper for each in got.values())
    assert (got["count_lifetime"].value, got["last_x_lifetime"].value) == (10, 5)


def test_what_has_left_the_log_still_counts() -> None:
    """Counts, sums, means, firsts, and extremes that nothing later has, exactly."""
    store = Both(schema_of(View("e", {"k": "k"}, ever())))
    values = [0.1 * (i - 50) for i in range(100)]
    store.submit("e", [row(START_MS + i * HOUR_MS, value) for i, value in enumerate(values)])
    newest = START_MS + 99 * HOUR_MS
    store.submit("e", [row(newest - 1_000, 7.0), row(newest - 500, 0.3), row(newest, 0.2)])
    got = read(store, newest - 700)
    assert (got["count"].lower, got["count"].upper) == (100, 100)
    assert got["first_x"].lower == got["first_x"].upper == -5
    assert (got["last_x"].lower, got["last_x"].upper) == (7, 7)
    assert (got["max_x"].lower, got["max_x"].upper, got["min_x"].lower) == (7, 7, -5)
    exactly = sum(map(Fraction, [*values[:-1], 7.0]))
    assert got["sum_x"].lower == got["sum_x"].upper == float(exactly)
    assert got["mean_x"].lower == got["mean_x"].upper == float(exactly / 100)
    assert 0 < got["stddev_x"].upper - got["stddev_x"].lower < 1e-9
    before = read(store, newest - 3_600_000 - 70_000)
    assert {each.status for each in before.values()} == {UNAVAILABLE}, "the log has not all that came later"


def test_an_extreme_that_came_later_may_have_been_there_before() -> None:
    store = Both(schema_of(View("e", {"k": "k"}, ever())))
    later = START_MS + 90 * DAY_MS
    store.submit("e", [row(START_MS, 1.0), row(later, 9.0), row(later + 1, 3.0), row(later + 5, 9.0)])
    got = read(store, later + 2)
    assert (got["max_x"].lower, got["max_x"].upper) == (9, 9), "as the log says"
    store.submit("e", [row(later + 7, 11.0)])
    got = read(store, later + 6)
    assert (got["max_x"].lower, got["max_x"].upper) == (9, 11), "what has left the log may have been 11"
    assert (got["min_x"].lower, got["min_x"].upper) == (1, 1)


def test_a_lifetime_that_had_ended_is_not_taken_for_the_one_after_it() -> None:
    """Though its events are still in the log of a longer window, dated ahead of the clock."""
    view = View("e", {"k": "k"}, ever(f"{30 * DAY_MS // 1000}s lifetime"), lifetime_idle_ms=DAY_MS)
    store = Both(schema_of(view), clock="wall")
    store.submit("e", [row(START_MS + 9_000, 50.0), row(START_MS, 3.0)], now_ms=START_MS)
    now = START_MS + DAY_MS + 1
    store.submit("e", [row(START_MS + 8, 4.0), row(now, 5.0)], now_ms=now)
    for ms in (0, 1, 7, 8, 8_999, 9_000, 10_000, 10_001, HOUR_MS, DAY_MS, DAY_MS + 1):
        read(store, START_MS + ms, now_ms=now)
    assert read(store, START_MS + 9_000, now_ms=now)["count"].status == UNAVAILABLE
    assert read(store, now - 1, now_ms=now)["count"].value == 1


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("exact_events", [1, 4, 1000])
@pytest.mark.parametrize("seed", range(12))
def test_any_history_read_at_any_time(clock: str, exact_events: int, seed: int) -> None:
    random_ = random.Random(seed * 31 + exact_events)
    idle_ms = random_.choice([90_000, 600_000, 400 * DAY_MS])
    windows = random_.choice(["2s lifetime", "60s lifetime", "600s lifetime", "lifetime"])
    lateness_ms = random_.choice([0, 5_000, 120_000])
    view = View(
        "e", {"k": "k"}, ever(windows), exact_events=exact_events, max_error=0.3,
        max_entries=max(exact_events, 8), lifetime_idle_ms=idle_ms,
    )  # fmt: skip
    store = Both(schema_of(view, replace(KIND, lateness_ms=lateness_ms)), clock=clock)
    now, times = START_MS, [START_MS]
    for _ in range(60):
        now += random_.choice([0, 1, 100, 1_000, 20_000, 100_000 if random_.random() < 0.3 else 5])
        rows = []
        for _ in range(random_.randint(1, 4)):
            behind = random_.choice([0, 0, 1, 50, 900, 4_000, 30_000, 100_000])
            ahead = random_.choice([0, 0, 3, 4_000]) if clock == "wall" else 0
            x = random_.choice([None, 0.1, -3.0, 2.5, 1e6, float(random_.randint(-3, 9))])
            rows.append(row(now - behind + ahead, x))
        options = {"now_ms": now} if clock == "wall" else {}
        store.submit("e", rows, random_.choice([None, "s"]), **options)
        times += [one.time for one in rows if one.time is not None]
        for _ in range(4):
            read(store, random_.choice(times[-12:]) + random_.choice([-1, 0, 0, 1, 70]), **options)
    store.restart(threads=1)
    read(store, times[-3], **options)


def test_a_mean_of_what_has_left_the_log_is_within_its_own_bounds() -> None:
    """Ten times 0.1 sum to less than 1, and what came since has no value."""
    store = Both(schema_of(View("e", {"k": "k"}, ever())))
    store.submit("e", [row(START_MS + i, 0.1) for i in range(10)])
    later = START_MS + 10 * HOUR_MS
    store.submit("e", [row(later, None), row(later + 10, None)])
    for name, got in read(store, later + 5).items():
        assert not got.lower > got.upper, name


def test_the_value_of_an_extreme_is_what_the_log_has_and_not_what_came_later() -> None:
    store = Both(schema_of(View("e", {"k": "k"}, ever())))
    store.submit("e", [row(START_MS, 3.0), row(START_MS + 1, 100.0)])
    later = START_MS + 10 * HOUR_MS
    store.submit("e", [row(later, 7.0), row(later + 10, 100.5)])
    got = read(store, later + 5)["max_x"]
    assert (got.lower, got.value, got.upper) == (7, 7, 100.5)


def test_nothing_of_a_column_before_its_first_event_is_certain() -> None:
    store = Both(schema_of(View("e", {"k": "k"}, ever())))
    store.submit("e", [row(START_MS, -1.0), row(START_MS + 5, 2.0)])
    got = read(store, START_MS + 1)
    assert (got["ups"].status, got["ups"].upper) == (NOT_FOUND, 0)
    assert got["up_mean"].status == NOT_FOUND
