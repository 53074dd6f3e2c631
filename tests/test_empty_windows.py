"""Windows that may hold nothing: what a merged log says where none of an entry's events need be inside.

Ten events of one key, a second apart, are merged as far as can be; the filter lets only the first two
through. The drill of window edges looks for more of the kind.
"""

from __future__ import annotations

import math
from typing import Any

from reference.compare import Got
from reference.engine import Engine
from reference.naive import NOT_FOUND, PRESENT, UNAVAILABLE, EventType, Feature, Schema, View
from reference.written import Filter, features, yaml

UP = Filter("x > 0", lambda f: None if f["x"] is None else f["x"] > 0)  # type: ignore[operator]
VALUES = ("mean", "min", "max", "stddev", "first", "last")
DAY_MS = 86_400_000


def of(*aggregates: str, value: str | None = None) -> tuple[Feature, ...]:
    return tuple(
        feature
        for aggregate in aggregates
        for feature in features(aggregate, "2s", value=value, where=UP, name=aggregate, exclude_self=False)
    )


def answers(
    declared: tuple[Feature, ...], values: list[float], as_of: int, step_ms: int = 1_000
) -> dict[str, Got]:
    view = View("e", {"k": "k"}, declared, exact_events=1, max_error=0.5, max_entries=1, top_error=0.5)
    kind = EventType({"k": "key", "q": "key", "x": "number"}, lateness_ms=60_000)
    engine = Engine(yaml(Schema({"e": kind}, {"v": view}, {"s": [f"v.{f.name}" for f in declared]})))
    rows: dict[str, Any] = {
        "ts": [-DAY_MS, *(step_ms * i for i in range(len(values)))],
        "k": ["before", *("a" for _ in values)],  # after the first event all windows are live
        "q": ["q", *("q" for _ in values)],
        "x": [1.0, *values],
    }
    engine.submit("e", rows)
    vectors = engine.read("s", {"k": ["a"]}, as_of=as_of)
    return {name.removeprefix("v.").removesuffix("_2s"): got for name, got in vectors.got(0)}


EARLY = [1.0, 1.0] + [-1.0] * 8


def test_times_that_prove_a_window_empty_make_it_not_found() -> None:
    declared = of(*VALUES, "sum", value="x") + of("count", "since_first", "since_last", "interval_mean")
    for name, got in answers(declared, EARLY, as_of=5_000).items():
        zero = 0.0 if name in ("count", "sum") else math.nan
        assert got.status == NOT_FOUND, (name, got)
        assert all(each == zero or math.isnan(zero) == math.isnan(each) for each in (got.lower, got.upper))


def test_a_window_that_may_be_empty_has_no_mean_and_a_count_whose_bounds_say_so() -> None:
    found = answers(of("mean", "min", "max", "stddev", "sum", value="x") + of("count"), EARLY, as_of=5_000)
    for name in ("mean", "min", "max", "stddev"):
        got = found[name]
        assert got.status == UNAVAILABLE, (name, got)
        assert all(map(math.isnan, (got.lower, got.value, got.upper)))
        assert got.coverage == 0
    for name in ("count", "sum"):
        got = found[name]
        assert (got.status, got.lower, got.upper) == (PRESENT, 0, 2), (name, got)


def test_one_time_that_is_inside_is_enough_for_bounds() -> None:
    """As of 2.5 s the second is in the window: its column kept when its last one was."""
    declared = of(*VALUES, value="x") + of("count", "since_first", "since_last")
    found = answers(declared, EARLY, as_of=2_500)
    assert {got.status for got in found.values()} == {PRESENT}
    assert (found["since_last"].lower, found["since_last"].upper) == (1_500, 1_500)
    assert (found["count"].lower, found["count"].upper) == (1, 1)


def test_an_interval_needs_two_events_that_are_surely_inside() -> None:
    declared = of("interval_mean", "interval_cv")
    one = answers(declared, EARLY, as_of=2_500)
    assert {got.status for got in one.values()} == {PRESENT}  # one event: certainly no interval
    assert all(math.isnan(got.value) for got in one.values())
    both = answers(declared, EARLY, as_of=1_500)
    got = both["interval_mean"]
    assert (got.status, got.lower, got.value, got.upper) == (PRESENT, 1_000, 1_000, 1_000)
    assert both["interval_cv"].upper == 0  # of one interval


def test_a_list_of_what_may_be_nothing_has_no_share() -> None:
    """A bit more than the window apart: what is merged lies around it."""
    declared = features("top", "2s", value="q", k=3) + features("hour_entropy", "2s")
    found = answers(declared, [1.0] * 40, as_of=65_050, step_ms=2_100)
    assert {got.status for got in found.values()} == {UNAVAILABLE}
    assert all(math.isnan(got.value) and math.isnan(got.upper) for got in found.values())
    sure = answers(declared, [1.0] * 40, as_of=81_900, step_ms=2_100)
    assert {got.status for got in sure.values()} == {PRESENT}
