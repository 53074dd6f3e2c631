"""A 0 that means "I don't know": what a view has not surely seen is WARMING, whatever the reason (2.14).

Views that were made after events had come, lifetimes of which nobody knows the beginning, events from beyond
the clock, reads ahead of it, clocks of types that differ. tests/reference has the rule; Both compares every
read with it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reference.both import Both
from reference.naive import NOT_FOUND, PRESENT, UNAVAILABLE, WARMING, EventType, Row, Schema, View
from reference.written import features
from storage import store_since

from featurestore.columns import text_column
from featurestore.core.state import State
from featurestore.engine import Engine
from featurestore.errors import ConfigError
from featurestore.schema import compile_schema

START_MS = 1_700_000_000_000
GOLDEN = Path(__file__).parent / "golden" / "store_since_v1"
KIND = EventType({"k": "key", "x": "number"}, lateness_ms=1_000)
AGGREGATES = ("sum", "mean", "min", "max", "stddev", "first", "last")
EVER = features("count", "lifetime") + tuple(
    feature for name in AGGREGATES for feature in features(name, "lifetime", value="x")
)


def schema_of(kind: EventType = KIND, **views: View) -> Schema:
    names = [f"{name}.{feature.name}" for name, view in views.items() for feature in view.features]
    return Schema({"e": kind}, views, {"s": names})


def view(windows: str = "10s lifetime") -> View:
    return View("e", {"k": "k"}, features("count", windows))


def row(time_ms: int, key: str = "a", x: float = 1.0) -> Row:
    return Row(time_ms, {"k": key, "x": x})


def read(
    store: Both, as_of: int | None = None, *, key: str = "a", **now: int
) -> list[tuple[int, float, float]]:
    """(status, value, coverage) of each feature."""
    _, vectors = store.read("s", {"k": key}, as_of=as_of, **now)
    return [(got.status, got.value, got.coverage) for _, got in vectors.got(0)]


@pytest.mark.parametrize("stated", [False, True])
def test_a_view_that_is_added_has_not_seen_the_events_that_the_store_holds(stated: bool) -> None:
    kind = replace(KIND, from_beginning=stated)
    store = Both(schema_of(kind, old=view("lifetime")))
    store.submit("e", [row(START_MS + i, x=i) for i in range(5)])
    assert read(store) == [(PRESENT, 5, 1.0) if stated else (WARMING, 5, 0.0)]
    store.apply(schema_of(kind, old=view("lifetime"), new=View("e", {"k": "k"}, EVER)))
    assert [(status, coverage) for status, _, coverage in read(store)[1:]] == [(WARMING, 0.0)] * len(EVER)
    store.submit("e", [row(START_MS + 5, x=5)])
    got = read(store)[1:]
    assert [(status, coverage) for status, _, coverage in got] == [(WARMING, 0.0)] * len(EVER)
    assert got[0][1] == 1, "what it has seen, so far"
    store.restart(threads=1)
    assert read(store)[1:] == got


def test_a_view_that_is_added_has_not_seen_what_came_from_beyond_the_clock() -> None:
    store = Both(schema_of(old=view("2s")), clock="wall")
    store.submit("e", [row(START_MS - 20_000, "b")], now_ms=START_MS - 20_000)
    store.submit("e", [row(START_MS + 9_000)], now_ms=START_MS)
    store.apply(schema_of(old=view("2s"), new=view("2s")))
    assert read(store, now_ms=START_MS + 9_000) == [(PRESENT, 1, 1.0), (WARMING, 0, 0.0)]
    half = START_MS + 10_000 + 1_000
    assert read(store, now_ms=half) == [(NOT_FOUND, 0, 1.0), (WARMING, 0, 0.5)]
    assert read(store, now_ms=half + 1_000)[1] == (NOT_FOUND, 0, 1.0)


@pytest.mark.parametrize("clock", ["event", "merged", "wall"])
def test_nothing_is_certain_ahead_of_the_clock(clock: str) -> None:
    """A day, and, of times in seconds that were taken for milliseconds, half a century behind it."""
    store = Both(schema_of(replace(KIND, from_beginning=True), v=view()), clock=clock)
    now = {"now_ms": START_MS} if clock == "wall" else {}
    ahead_ms = 10_000 if clock == "wall" else 0
    store.submit("e", [row(START_MS)], **now)
    assert read(store, START_MS, **now) == [(PRESENT, 1, 1.0)] * 2
    assert read(store, START_MS + ahead_ms, **now)[1] == (PRESENT, 1, 1.0)
    assert read(store, START_MS + 1 + ahead_ms, **now)[1] == (WARMING, 1, 0.0)
    assert read(store, START_MS + 1 + ahead_ms, **now)[0][2] == np.float32(0.9999)
    for days in (1, 365):
        later = START_MS + days * 86_400_000
        assert read(store, later, **now) == [(WARMING, 0, 0.0), (WARMING, 1, 0.0)]
    assert [status for status, *_ in read(store, START_MS // 1000, **now)] == [UNAVAILABLE] * 2


def test_before_the_first_event_a_wall_clock_knows_what_was_stated_and_an_event_clock_nothing() -> None:
    for clock, stated, expected in (
        ("wall", True, [(NOT_FOUND, 0, 1.0)] * 2),
        ("wall", False, [(WARMING, 0, 0.0)] * 2),
        ("event", True, [(WARMING, 0, 0.0)] * 2),
        ("merged", False, [(WARMING, 0, 0.0)] * 2),
    ):
        store = Both(schema_of(replace(KIND, from_beginning=stated), v=view()), clock=clock)
        now = {"now_ms": START_MS} if clock == "wall" else {}
        if clock == "wall":
            store.submit("e", [Row(None, {"k": "a"})], **now)  # refused, and the clock is known
        assert read(store, **now) == expected, (clock, stated)


def two_types(*, stated: bool = True) -> Schema:
    kinds = {name: EventType({"k": "key"}, 1_000, from_beginning=stated) for name in "ab"}
    views = {name: View(name, {"k": "k"}, features("count", "10s lifetime")) for name in "ab"}
    names = [f"{name}.count_{window}" for name in "ab" for window in ("10s", "lifetime")]
    return Schema(kinds, views, {"s": names})


@pytest.mark.parametrize("clock", ["event", "merged"])
def test_a_type_whose_clock_is_behind_has_not_seen_what_its_clock_has_not(clock: str) -> None:
    """On one clock of all types it has: nothing of it may come any more that would count."""
    store = Both(two_types(), clock=clock)
    store.submit("a", [Row(START_MS + i, {"k": "a"}) for i in range(10)])
    store.submit("b", [Row(START_MS + 5 * 86_400_000, {"k": "a"})])
    behind = (
        [(NOT_FOUND, 0, 1.0), (PRESENT, 10, 1.0)]
        if clock == "merged"
        else [(WARMING, 0, 0.0), (WARMING, 10, 0.0)]
    )
    assert read(store) == [*behind, (PRESENT, 1, 1.0), (PRESENT, 1, 1.0)]
    (answer,), _ = store.submit("a", [Row(START_MS + 10, {"k": "a"})])
    told = (answer.outcome, answer.partly_late)
    assert told == (0, clock == "merged"), "its window has dropped it by the one clock, not its lifetime"


def test_one_clock_moves_inside_a_batch_for_the_views_of_other_types_too() -> None:
    """Values do not depend on the batches that events come in."""
    rows = [Row(START_MS + 4_000 * i, {"k": "a"}) for i in range(8)]
    together, apart = Both(two_types(), clock="merged"), Both(two_types(), clock="merged")
    for store in (together, apart):
        store.submit("b", [Row(START_MS, {"k": "a"})])
    _, vectors = together.submit("a", rows, "s")
    each = [apart.submit("a", [one], "s")[1] for one in rows]
    assert vectors is not None
    for i, one in enumerate(each):
        assert one is not None
        assert list(vectors.got(i)) == list(one.got(0))
    status = dict(each[-1].got(0))["b.count_10s"].status if each[-1] is not None else None
    assert status == NOT_FOUND


def test_a_window_that_is_made_longer_covers_at_once_what_was_kept() -> None:
    store = Both(schema_of(v=view("10s")))
    store.submit("e", [row(START_MS), row(START_MS + 60_000)])
    store.apply(schema_of(v=view("10s 20s")))  # kept were 10 s and a second of lateness
    assert read(store) == [(PRESENT, 1, 1.0), (WARMING, 1, np.float32(11_001 / 20_000))]
    store.submit("e", [row(START_MS + 60_000 + 8_999)])
    assert [status for status, *_ in read(store)] == [PRESENT, PRESENT]


class TestStore:
    def test_what_was_before_it_is_stated_once_and_outlives_restarts_and_changes(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "store"
        with Engine.open(path, schema=store_since.SCHEMA, clock="merged", history="none") as engine:
            assert engine.history == "none"
        with Engine.open(path, history="none") as engine:
            engine.apply_schema(store_since.YOUNGER)
            assert engine.history == "none"
        with pytest.raises(ConfigError, match="history is 'unknown', and this store's is 'none'"):
            Engine.open(path, history="unknown")
        with Engine.open(path) as engine:
            assert all(event.from_beginning for event in engine.state.plan.events)

    def test_it_cannot_be_stated_later_by_mere_statement(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        Engine.open(path, schema=store_since.SCHEMA).close()
        with pytest.raises(ConfigError, match="store's is 'unknown': what was before it is stated once"):
            Engine.open(path, history="none")
        with Engine.open(path, history="unknown") as engine:
            assert engine.history == "unknown"
        with pytest.raises(ConfigError, match="history is 'some'; it is 'none' or 'unknown'"):
            Engine.open(tmp_path / "other", schema=store_since.SCHEMA, history="some")
        assert not (tmp_path / "other").exists()

    def test_the_golden_store_opens_as_it_was(self, tmp_path: Path) -> None:
        store = tmp_path / "store"
        shutil.copytree(GOLDEN, store)
        with Engine.open(store) as engine:
            assert (engine.directory.identity.clock, engine.history) == ("merged", "none")
            assert [each.since_ms for each in engine.state.plan.views] == [None, None, START_MS + 2_001]
            vectors = engine.read(0, {"account": text_column(["anna"])[0]}, 1)
            assert vectors.values[0].tolist() == [3, 3, 1, 1, 1]
            assert vectors.statuses[0].tolist() == [PRESENT] * 4 + [WARMING]
            assert vectors.coverage[0].tolist() == [1, 1, 1, 1, np.float32(0.7)]
            store_since.send(engine, "skip", START_MS + 12_000)
            vectors = engine.read(0, {"account": text_column(["anna"])[0]}, 1)
            assert vectors.statuses[0].tolist() == [PRESENT] * 5


def test_a_clock_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="clock is 'moon'; it is wall or event or merged"):
        State(compile_schema(store_since.SCHEMA), clock="moon")
