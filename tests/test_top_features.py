"""Heaviest values by feature: known shares and entropies, statuses, what may change, what mistakes say."""

from __future__ import annotations

import math

import pytest
from reference.both import Both
from reference.naive import NOT_FOUND, PRESENT, UNAVAILABLE, WARMING, EventType, Row, Schema, View
from reference.written import features, yaml

from featurestore.errors import SchemaError
from featurestore.schema import compile_schema

HOUR_MS = 3_600_000
KIND = EventType({"k": "key", "q": "key", "s": "string", "x": "number", "b": "bool"}, lateness_ms=60_000)


def schema_of(view: View) -> Schema:
    return Schema({"e": KIND}, {"v": view}, {"s": [f"v.{f.name}" for f in view.features]})


def opened(view: View, *, live: bool = True) -> Both:
    """`live`: long enough for a minute's window."""
    store = Both(schema_of(view))
    if live:
        store.submit("e", [Row(900_000, {"k": "b"})])
    return store


def answer(store: Both, as_of: int | None = None) -> list[tuple[int, float]]:
    _, vectors = store.read("s", {"k": "a"}, as_of=as_of)
    return [(got.status, got.value) for _, got in vectors.got(0)]


def fed(store: Both, field: str, values: list[object], at: int = 1_000_000) -> None:
    store.submit("e", [Row(at + i, {"k": "a", field: value}) for i, value in enumerate(values)])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("q", [7, "7", 7.0, "8", "9", None, ""]),  # a key's text, and an empty one is none
        ("s", ["v", "v", "v", "u", "w", "", None]),  # nor is an empty string a value
        ("x", [0, -0.0, 0.0, 1e300, -1, None]),
        ("b", [True, True, True, False, None]),
    ],
)
def test_values_of_every_kind_are_told_apart(field: str, values: list[object]) -> None:
    store = opened(View("e", {"k": "k"}, features("top", "60s", value=field, k=2)))
    fed(store, field, values)
    rest = [1, 1] if field != "b" else [1]
    share, entropy = answer(store)
    assert share == (PRESENT, 3 / (3 + sum(rest)))
    assert entropy == (PRESENT, pytest.approx(0.811278124459133))  # of 3 and 1


def test_entropy_is_0_where_one_value_has_it_all_and_log2_k_where_all_are_even() -> None:
    store = opened(View("e", {"k": "k"}, features("top", "60s", value="q", k=4)))
    fed(store, "q", ["u"] * 5)
    assert answer(store) == [(PRESENT, 1.0), (PRESENT, 0.0)]
    fed(store, "q", [name for name in "vwxyz" for _ in range(5)], at=1_000_100)
    assert answer(store) == [(PRESENT, 1 / 6), (PRESENT, 2.0)]


def test_what_it_says_before_during_and_after() -> None:
    store = opened(View("e", {"k": "k"}, features("top", "60s", value="q", k=2)), live=False)
    store.submit("e", [Row(1_000_000, {"k": "b", "q": "z"})])
    assert [status for status, _ in answer(store, 1_030_000)] == [WARMING] * 2
    store.submit("e", [Row(1_060_000, {"k": "b", "q": "z"})])
    nothing = answer(store, 1_060_000)
    assert [status for status, _ in nothing] == [NOT_FOUND] * 2
    assert all(math.isnan(value) for _, value in nothing)
    fed(store, "q", ["u", "u", "w"], at=1_060_000)
    assert answer(store) == [(PRESENT, 2 / 3), (PRESENT, pytest.approx(0.918295834054490))]
    assert answer(store, 1_060_001) == [(PRESENT, 1.0), (PRESENT, 0.0)]  # as it was
    store.submit("e", [Row(1_300_000, {"k": "b", "q": "z"})])
    assert [status for status, _ in answer(store)] == [NOT_FOUND] * 2
    assert [status for status, _ in answer(store, 1_100_000)] == [UNAVAILABLE] * 2


@pytest.mark.parametrize("day", [0, -1, 19_000])
def test_hours_of_the_day_in_utc(day: int) -> None:
    at = day * 24 * HOUR_MS
    view = View("e", {"k": "k"}, features("hour_entropy", f"{86_400 * 3}s"), exact_events=32)
    store = opened(view, live=False)
    store.submit("e", [Row(at, {"k": "a"}), Row(at + HOUR_MS - 1, {"k": "a"})])
    assert [value for _, value in answer(store)] == [0.0]
    store.submit("e", [Row(at + HOUR_MS, {"k": "a"}), Row(at + 24 * HOUR_MS - 1, {"k": "a"})])
    assert [value for _, value in answer(store)] == [1.5]  # 2, 1, 1
    store.submit("e", [Row(at + 24 * HOUR_MS + 400_000 * i, {"k": "a"}) for i in range(4 * 24 * 9)])
    _, vectors = store.read("s", {"k": "a"})
    ((_, got),) = vectors.got(0)
    assert got.lower < math.log2(24) <= got.upper + 1e-3  # a clock ticks in every hour of three days


def test_hours_are_never_missed_however_many_events_are_merged() -> None:
    """Only the entry at the edge is in doubt: half of the events in one hour, the others in all of them."""
    store = opened(
        View("e", {"k": "k"}, features("hour_entropy", f"{86_400 * 9}s"), exact_events=32), live=False
    )
    at = 0
    for _ in range(8):
        rows = []
        for hour in range(24):
            n = 69 if hour == 3 else 3
            rows += [Row(at + 1000 * i + hour * HOUR_MS, {"k": "a"}) for i in range(n)]
        store.submit("e", rows)
        at += 24 * HOUR_MS
    _, vectors = store.read("s", {"k": "a"}, as_of=at)
    ((_, got),) = vectors.got(0)
    assert got.upper - got.lower < 1e-8  # nothing at the edge, either: all that was is inside the window
    assert got.value == pytest.approx(0.5 + 0.5 * math.log2(46), abs=1e-8)


def test_another_number_of_values_starts_empty_and_the_share_of_the_old_goes() -> None:
    store = opened(View("e", {"k": "k"}, features("top", "5s", value="q", k=2)))
    fed(store, "q", ["u", "u", "w"])
    assert answer(store)[0] == (PRESENT, 2 / 3)
    for k, statuses in ((2, [PRESENT] * 2), (3, [WARMING] * 2)):
        view = View("e", {"k": "k"}, features("top", "5s", value="q", k=k), lifetime_idle_ms=90_000)
        store.engine.apply(yaml(schema_of(view)), store.now_ms())
        got = [got for _, got in store.engine.read("s", {"k": ["a"]}).got(0)]
        assert [each.status for each in got] == statuses
    assert all(math.isnan(each.value) for each in got)


def test_a_forgotten_key_leaves_no_text_behind() -> None:
    store = opened(View("e", {"k": "k"}, features("top", "60s", value="s", k=2)))
    fed(store, "s", [f"secret-{i}" for i in range(60)])
    assert b"secret-59" in store.engine.state.snapshot()
    store.forget({"k": "a"})
    assert b"secret-" not in store.engine.state.snapshot()


def schema(feature: str, *settings: str, windows: str = "[1h]") -> str:
    lines = [
        "version: 1",
        "name: mistakes",
        "events: {e: {time: ts, fields: {k: key, q: key, x: number}}}",
        "views:",
        "  v:",
        "    event: e",
        "    key: k",
        f"    windows: {windows}",
        f"    features: [{feature}]",
    ]
    return "\n".join([*lines, *(f"    {setting}" for setting in settings)]) + "\n"


def test_names_and_defaults() -> None:
    plan = compile_schema(schema('count, "top(q)", {name: nums, aggregate: "top( x , 3 )"}, hour_entropy'))
    assert [feature.name for feature in plan.features] == [
        "v.count_1h",
        "v.top_q_share_1h",
        "v.top_q_entropy_1h",
        "v.nums_share_1h",
        "v.nums_entropy_1h",
        "v.hour_entropy_1h",
    ]
    assert {view.name: (view.k, view.n_counters) for view in plan.views if view.k} == {
        "v.top(q, 10)": (10, 64),
        "v.top(x, 3)": (3, 64),
        "v.top(24)": (24, 24),
    }


@pytest.mark.parametrize("exact_events", [1, 256, 32_768])
@pytest.mark.parametrize("top_counters", [8, 64, 512])
def test_every_setting_that_is_allowed_can_be_served(exact_events: int, top_counters: int) -> None:
    view = View(
        "e", {"k": "k"}, features("top", "5s", value="q", k=8) + features("hour_entropy", "5s"),
        exact_events=exact_events, max_entries=max(4096, exact_events), top_counters=top_counters,
    )  # fmt: skip
    store = opened(view)
    fed(store, "q", ["u", "w"])
    assert answer(store)[0] == (PRESENT, 0.5)


@pytest.mark.parametrize(
    ("feature", "settings", "problem"),
    [
        ("top", [], "s.yaml:9: top in view v is written top(field) or top(field, 10)"),
        ('"top(q, 5, 6)"', [], "s.yaml:9: top in view v is written top(field) or top(field, 10)"),
        ("top(p)", [], "s.yaml:9: unknown field p in view v; known: k, q, x"),
        ('"top(q, 65)"', [], "s.yaml:9: number of values of top in view v must be from 1 to 64"),
        ('"top(q, many)"', [], "s.yaml:9: number of values of top in view v must be a whole number"),
        ("hour_entropy(x)", [], "s.yaml:9: hour_entropy in view v is of events and takes no field"),
        ("hours_entropy", [], "s.yaml:9: unknown aggregate hours_entropy in view v; did you mean hour_e"),
        ('"top(q, 9)"', ["top_counters: 8"], "s.yaml:6: feature v.top_q_share_1h is of 9 values"),
        (
            "top(q)",
            ["top_counter: 8"],
            "s.yaml:10: unknown setting top_counter in view v; did",
        ),
        ("top(q)", ["top_counters: 7"], "s.yaml:10: top_counters of view v must be from 8 to 512"),
        ("top(q)", ["top_error: 0"], "s.yaml:10: top_error of view v must be above 0 and at"),
        ("top(q)", ["exact_events: 40000"], "s.yaml:6: feature v.top_q_share_1h: with heaviest"),
        ("top(q)", ["offset: 1h"], "s.yaml:6: feature v.top_q_share_1h: values are counted in recent events"),
        ("hour_entropy", ["offset: 1h"], "s.yaml:6: feature v.hour_entropy_1h: values are counted in recent"),
    ],
)
def test_mistakes_are_named(feature: str, settings: list[str], problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        compile_schema(schema(feature, *settings), path="s.yaml")
    assert str(caught.value).startswith(problem)


def test_a_lifetime_is_a_mistake() -> None:
    with pytest.raises(SchemaError, match="answers neither an offset nor a lifetime"):
        compile_schema(schema("top(q)", windows="[lifetime]"))


def test_what_the_counts_are_made_of_may_not_change() -> None:
    before = compile_schema(schema('"top(q, 5)"', "top_counters: 16"))
    for setting in ("top_counters: 32", "top_error: 0.2\n    top_counters: 16"):
        with pytest.raises(SchemaError) as caught:
            compile_schema(schema('"top(q, 5)"', setting), path="s.yaml", previous=before)
        changed = "top_counters was 16, is 32" if "32" in setting else "top_error was 0.1, is 0.2"
        assert f"view v.top(q, 5) has state that does not fit this change: {changed}" in str(caught.value)
