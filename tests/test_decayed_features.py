"""Decayed features: known weights, and sums that do not care in which order events came."""

from __future__ import annotations

import math
import random

import pytest
from reference.both import Both
from reference.naive import NOT_FOUND, PRESENT, UNAVAILABLE, WARMING, EventType, Row, Schema, View
from reference.written import features

from featurestore.errors import SchemaError
from featurestore.schema import compile_schema

FEATURES = (
    features("decayed_count", "10s")
    + features("decayed_sum", "10s", value="x")
    + features("decayed_mean", "10s", value="x")
)
HALF_LIFE_MS = 10_000


def opened() -> Both:
    view = View("e", {"k": "k"}, FEATURES)
    kind = EventType({"k": "key", "x": "number"}, lateness_ms=60_000)
    return Both(Schema({"e": kind}, {"v": view}, {"s": [f"v.{f.name}" for f in FEATURES]}))


def answer(store: Both, as_of: int) -> list[tuple[int, float]]:
    _, vectors = store.read("s", {"k": "a"}, as_of=as_of)
    return [(got.status, got.value) for _, got in vectors.got(0)]


@pytest.mark.parametrize("start", [1_700_000_000_000, 0, -1, -62_000_000_000_007])
def test_an_event_counts_half_as_much_after_each_half_life(start: int) -> None:
    store = opened()
    store.submit("e", [Row(start, {"k": "a", "x": 3.0})])
    for lives in range(1, 65):
        count, total, mean = answer(store, start + lives * HALF_LIFE_MS)
        off = 0.0 if start % HALF_LIFE_MS == 0 else 1e-15  # at a landmark to the last bit
        assert math.isclose(count[1], 2.0**-lives, rel_tol=off)
        assert math.isclose(total[1], 3.0 * 2.0**-lives, rel_tol=off)
        assert math.isclose(mean[1], 3.0, rel_tol=off)


def test_what_it_says_before_during_and_after() -> None:
    store = opened()
    store.submit("e", [Row(1_000_000, {"k": "b", "x": 1.0})])
    at = 1_000_000 + 6 * HALF_LIFE_MS
    store.submit("e", [Row(at, {"k": "b", "x": 1.0})])
    assert [status for status, _ in answer(store, at)] == [WARMING] * 3
    at = 1_000_000 + 8 * HALF_LIFE_MS
    assert [status for status, _ in answer(store, at)] == [WARMING] * 3  # the clock has not come so far
    store.submit("e", [Row(at, {"k": "b", "x": 1.0})])
    assert answer(store, at)[:2] == [(NOT_FOUND, 0.0)] * 2
    assert math.isnan(answer(store, at)[2][1])
    store.submit("e", [Row(at, {"k": "a", "x": 1.0})])
    assert answer(store, at) == [(PRESENT, 1.0)] * 3
    assert [status for status, _ in answer(store, at - 1)] == [NOT_FOUND] * 3  # it was the first
    store.submit("e", [Row(at + 1, {"k": "a", "x": 1.0})])
    assert [status for status, _ in answer(store, at)] == [
        PRESENT,
        PRESENT,
        UNAVAILABLE,
    ]
    later = at + 65 * HALF_LIFE_MS + 60_000
    store.submit("e", [Row(later, {"k": "b", "x": 1.0})])
    assert [status for status, _ in answer(store, later)] == [NOT_FOUND] * 3
    store.submit("e", [Row(later, {"k": "a", "x": 5.0})])
    assert answer(store, later) == [(PRESENT, 1.0), (PRESENT, 5.0), (PRESENT, 5.0)]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_arrival_does_not_matter(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        Row(1_000_000 + draw.randrange(50_000), {"k": "a", "x": draw.uniform(-1e9, 1e9)})
        for _ in range(2_000)
    ]
    answers = []
    for _ in range(3):
        store = opened()
        for at in range(0, len(rows), 500):
            store.engine.submit("e", store._data("e", rows[at : at + 500]))
        vectors = store.engine.read("s", {"k": ["a"]}, as_of=1_060_000)
        answers.append([got.value for _, got in vectors.got(0)])
        draw.shuffle(rows)
    scale = math.fsum(
        abs(float(str(row.fields["x"]))) * 2 ** ((row.time - 1_060_000) / HALF_LIFE_MS) for row in rows
    )
    for other in answers[1:]:
        assert math.isclose(other[0], answers[0][0], rel_tol=1e-14)
        assert abs(other[1] - answers[0][1]) <= 1e-12 * scale
        assert abs(other[2] - answers[0][2]) <= 1e-12 * scale


def refusal(feature: str, more: str = "") -> str:
    text = f"""\
version: 1
name: t
events:
  e: {{time: {{field: ts, unit: ms}}, fields: {{k: key, x: number}}}}
views:
  v:
    event: e
    key: k
    windows: [1h]
    {more}
    features:
      - {feature}
"""
    with pytest.raises(SchemaError) as raised:
        compile_schema(text)
    return str(raised.value)


@pytest.mark.parametrize(
    ("feature", "more", "message"),
    [
        (
            "decayed_count",
            "",
            "decayed_count in view v is written decayed_count(1h), with a half-life of your own",
        ),
        ("decayed_sum(x)", "", "decayed_sum in view v is written decayed_sum(field, 1h)"),
        ("decayed_sum(k, 1h)", "", "decayed_sum(k) in view v: k is declared key"),
        ("decayed_count(soon)", "", "half-life of decayed_count in view v"),
        (
            '{aggregate: "decayed_sum(x, 1h)", windows: [1h]}',
            "",
            "decays by its half-life and takes no windows",
        ),
        ("{aggregate: decayed_sum(x, 1h)}", "", "write it in quotes"),
        ("decayed_count(1h)", "offset: 1h", "a decayed sum cannot be read as it was"),
        ("distinct(k)", "offset: 1h", "which answers neither an offset nor a lifetime"),
        (
            "{aggregate: distinct(k), windows: [lifetime]}",
            "",
            "which answers neither an offset nor a lifetime",
        ),
        ("distinct(x)", "distinct_error: 0.5", "distinct_error of view v must be 0.006 to 0.1"),
        ("distinct(x)", "exact_values: 5000", "exact_values of view v"),
        ("{aggregate: interval_cv, windows: [lifetime]}", "", "make the intervals of a lifetime unknowable"),
        ("interval_cv(x)", "", "interval_cv in view v is of events and takes no field"),
    ],
)
def test_mistakes_say_what_was_meant(feature: str, more: str, message: str) -> None:
    assert message in refusal(feature, more)
