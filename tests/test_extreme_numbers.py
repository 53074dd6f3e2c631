"""Numbers at the ends of the doubles: what is said of them is true, and what was too large is right once it
is gone."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from reference.compare import Got
from reference.engine import Engine
from reference.naive import PRESENT, UNAVAILABLE, EventType, Feature, Schema, View
from reference.written import features, yaml

LIFE_MS = 10_000
DAY_MS = 86_400_000


class One:
    """An engine with one key."""

    def __init__(self, declared: tuple[Feature, ...], **options: Any) -> None:
        view = View("e", {"k": "k"}, declared, **options)
        kind = EventType({"k": "key", "x": "number"}, lateness_ms=60_000)
        schema = Schema({"e": kind}, {"v": view}, {"s": [f"v.{f.name}" for f in declared]})
        self.engine = Engine(yaml(schema), from_beginning=True)
        self.engine.submit("e", {"ts": [-DAY_MS], "k": ["before"], "x": [1.0]})

    def feed(self, *events: tuple[int, float]) -> None:
        times, values = zip(*events, strict=True)
        self.engine.submit("e", {"ts": list(times), "k": ["a"] * len(events), "x": list(values)})

    def read(self, as_of: int) -> dict[str, Got]:
        """As another key's event moves the clock there."""
        self.engine.submit("e", {"ts": [as_of], "k": ["clock"], "x": [0.0]})
        vectors = self.engine.read("s", {"k": ["a"]}, as_of=as_of)
        return {name.removeprefix("v."): got for name, got in vectors.got(0)}


DECAYED = features("decayed_sum", "10s", value="x") + features("decayed_mean", "10s", value="x")


@pytest.mark.parametrize("values", [[1.7e308, 1.7e308], [-1.7e308] * 3, [1.7e308, -1.7e308, 1.7e308, -1e308]])
def test_a_decayed_sum_beyond_all_numbers_is_right_again_when_it_has_faded(values: list[float]) -> None:
    one = One(DECAYED)
    one.feed(*((5, value) for value in values))
    above = sum(Fraction(x) for x in values if x > 0)
    below = -sum(Fraction(x) for x in values if x < 0)
    for lives in range(8):
        found = one.read(5 + lives * LIFE_MS)
        total, mean = found["decayed_sum_x_10s"], found["decayed_mean_x_10s"]
        if max(above, below) / 2**lives < Fraction(sys.float_info.max):
            true = (above - below) / 2**lives
            assert (total.status, total.value) == (PRESENT, pytest.approx(float(true), rel=1e-12))
            true = (above - below) / len(values)
            assert (mean.status, mean.value) == (PRESENT, pytest.approx(float(true), rel=1e-12))
        else:  # as for windows: what is above 0, and what is below, are to be doubles
            assert {total.status, mean.status} == {UNAVAILABLE}
            assert math.isnan(total.value) and math.isnan(mean.value)


def test_what_comes_after_a_sum_beyond_all_numbers_counts_in_full() -> None:
    """Two thousand half-lives later nothing is left of what was too large, and all of what was not."""
    one = One(DECAYED)
    one.feed((0, 1.7e308), (0, 1.7e308))
    one.feed(*((LIFE_MS * i, 3.0) for i in range(1, 2_200)))
    one.engine.restart()
    got = one.read(LIFE_MS * 2_199)["decayed_sum_x_10s"]
    assert (got.status, got.value) == (PRESENT, pytest.approx(6.0, rel=1e-12))


def test_sums_beyond_all_numbers_survive_a_restart_bit_for_bit_and_batches() -> None:
    together, apart = One(DECAYED), One(DECAYED)
    events = [(LIFE_MS * i // 3, x) for i, x in enumerate([1.0, 1.7e308, 1.7e308, -1.7e308, 1e-300, 5.0])]
    together.feed(*events)
    for event in events:
        apart.feed(event)
        apart.engine.restart()
    assert together.engine.state.digest() == apart.engine.state.digest()


STDDEV = features("stddev", "10s lifetime", value="x")


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [1e-160, 3e-160, 3e-160, 7e-160],
        [1.0, 1.0 + 1e-15, 1.0],
        [5e-324, 5e-300, 0.0],
        [1e200, -1e200, 3e200, 0.0],
        [1.7e308, 0.0, 1.5e308],
        [1e-200, 2e-200, 1e200],  # the scale changes on the way
        [2.0, 3e180, 4.0, 5e-180],
    ],
)
def test_the_spread_of_what_is_tiny_or_vast_is_a_number(values: list[float], merged: bool) -> None:
    options = {"exact_events": 1, "max_error": 0.5, "max_entries": 1} if merged else {}
    one = One(STDDEV, **options)
    values = values * 5
    one.feed(*((10 * i, x) for i, x in enumerate(values)))
    exact = [Fraction(x) for x in values]
    mean = sum(exact) / len(exact)
    square = sum((x - mean) ** 2 for x in exact) / len(exact)
    scale = Fraction(max(abs(x - mean) for x in exact))
    true = float(scale * Fraction(math.sqrt(square / scale**2)))
    rounding = 4e-16 * max(map(abs, values))
    for got in one.read(10 * len(values)).values():
        assert got.status == PRESENT
        assert got.lower <= got.value <= got.upper
        assert got.value == pytest.approx(true, rel=1e-9, abs=rounding)
        assert got.value > 0


@pytest.mark.parametrize("options", [{}, {"exact_events": 1, "max_error": 0.5, "max_entries": 1}])
@pytest.mark.parametrize("gap_ms", [1, 7, 999, 60_001])
def test_a_clock_does_not_vary_and_one_millisecond_shows(gap_ms: int, options: dict[str, Any]) -> None:
    clock, late = One(features("interval_cv", "86400s"), **options), One(features("interval_cv", "86400s"))
    times = [gap_ms * i + 1_700_000_000_000 for i in range(300)]
    clock.feed(*((t, 0.0) for t in times))
    got = clock.read(times[-1])["interval_cv_86400s"]
    assert (got.status, got.lower, got.value, got.upper) == (PRESENT, 0, 0, 0)
    times[-1] += 1
    late.feed(*((t, 0.0) for t in times))
    gaps = [b - a for a, b in pairwise(times)]
    mean = Fraction(sum(gaps), len(gaps))
    true = math.sqrt(sum((g - mean) ** 2 for g in gaps) / len(gaps) / mean**2)
    got = late.read(times[-1])["interval_cv_86400s"]
    assert got.value == pytest.approx(true, rel=1e-12)


def test_late_events_leave_true_bounds_of_how_much_intervals_vary() -> None:
    """What splits a gap of a merged entry may have made all gaps equal."""
    one = One(features("interval_cv", "100s"), exact_events=1, max_error=0.5, max_entries=1)
    times = [0, 1_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 9_000, 10_000, 2_000]
    one.feed(*((t, 0.0) for t in times))
    got = one.read(10_000)["interval_cv_100s"]
    assert got.lower <= 0 <= got.upper < 0.5


def test_sums_of_both_signs_beyond_all_numbers_say_nothing_until_they_have_left_the_window() -> None:
    one = One(features("sum", "10s", value="x") + features("mean", "10s", value="x"))
    one.feed((0, 1.7e308), (1, 1.7e308), (2, -1.7e308), (3, -1.7e308), (9_000, 2.0))
    assert {got.status for got in one.read(9_000).values()} == {UNAVAILABLE}
    after = one.read(10_003)
    assert [(got.status, got.value) for got in after.values()] == [(PRESENT, 2.0)] * 2


@pytest.mark.parametrize("values", [[-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]])
def test_what_is_exact_has_one_sign_of_zero(values: list[float]) -> None:
    """What is merged keeps a minimum and a maximum, and which zero they are is a matter of who came first."""
    declared = features("last", "lifetime", value="x") + features("first", "lifetime", value="x")
    one = One(declared)
    one.feed(*enumerate(values))
    for name, got in one.read(10).items():
        signs = {math.copysign(1.0, number) for number in (got.value, got.lower, got.upper)}
        assert (got.value, len(signs)) == (0.0, 1), (name, got)
