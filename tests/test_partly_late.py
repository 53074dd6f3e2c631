"""Events that are too old for a part of what they match: lifetimes take them, and what drops them says so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from reference.both import Both
from reference.naive import (
    DAY_MS,
    HOUR_MS,
    LATE,
    NOT_FOUND,
    PRESENT,
    UNAVAILABLE,
    EventType,
    Row,
    Schema,
    View,
)
from reference.written import features
from storage import store_fed

from featurestore.columns import text_column
from featurestore.engine import Engine
from featurestore.storage.check import verify

GOLDEN = Path(__file__).parent / "golden" / "store_fed_v1"
JAN_11_MS, JAN_2_MS = 1_704_931_200_000, 1_704_153_600_000
KIND = EventType({"k": "key", "x": "number"}, lateness_ms=HOUR_MS, from_beginning=True)
EVER = features("count", "lifetime") + tuple(
    feature
    for name in ("sum", "min", "max", "mean", "stddev", "first", "last")
    for feature in features(name, "lifetime", value="x")
)


def schema_of(kind: EventType = KIND, **views: View) -> Schema:
    names = [f"{name}.{feature.name}" for name, view in views.items() for feature in view.features]
    return Schema({"e": kind}, views, {"s": names})


def row(time_ms: int, x: float = 1.0, key: str = "a") -> Row:
    return Row(time_ms, {"k": key, "x": x})


def read(store: Both, as_of: int | None = None, **now: int) -> dict[str, tuple[int, float]]:
    _, vectors = store.read("s", {"k": "a"}, as_of=as_of, **now)
    return {name: (got.status, got.value) for name, got in vectors.got(0)}


def partly(store: Both, *rows: Row, **now: int) -> list[tuple[int, bool]]:
    answers, _ = store.submit("e", rows, "s", **now)
    return [(answer.outcome, answer.partly_late) for answer in answers]


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_lifetimes_take_what_windows_of_their_view_drop(clock: str) -> None:
    store = Both(
        schema_of(
            a=View("e", {"k": "k"}, features("count", "60s") + EVER),
            b=View("e", {"k": "k"}, features("count", f"{30 * DAY_MS // 1000}s")),
        ),
        clock=clock,
    )
    now = {"now_ms": JAN_11_MS} if clock == "wall" else {}
    told = partly(store, row(JAN_11_MS, 5), row(JAN_2_MS, 1), row(JAN_11_MS + 1_000, 7), **now)
    assert told == [(0, False), (0, True), (0, False)]
    got = read(store, JAN_11_MS + 1_000, **now)
    assert got["b.count_2592000s"] == (PRESENT, 3)
    assert {name: value for name, value in got.items() if "lifetime" in name} == {
        "a.count_lifetime": (PRESENT, 3),
        "a.sum_x_lifetime": (PRESENT, 13),
        "a.min_x_lifetime": (PRESENT, 1),
        "a.max_x_lifetime": (PRESENT, 7),
        "a.mean_x_lifetime": (PRESENT, pytest.approx(13 / 3)),
        "a.stddev_x_lifetime": (PRESENT, pytest.approx((224 / 9) ** 0.5 / 2)),
        "a.first_x_lifetime": (PRESENT, 1),
        "a.last_x_lifetime": (PRESENT, 7),
    }
    assert got["a.count_60s"] == (PRESENT, 2)
    store.restart(threads=1)
    assert read(store, JAN_11_MS + 1_000, **now) == got


def test_a_view_of_lifetimes_alone_can_be_loaded_from_history() -> None:
    store = Both(schema_of(a=View("e", {"k": "k"}, EVER)), clock="wall")
    days = [300, 200, 399, 1, 0]
    told = partly(store, *(row(JAN_11_MS - day * DAY_MS) for day in days), now_ms=JAN_11_MS)
    assert told == [(0, False)] * 5, "there is no window that could miss them"
    assert read(store, now_ms=JAN_11_MS)["a.count_lifetime"] == (PRESENT, 5)
    assert partly(store, row(JAN_11_MS - 401 * DAY_MS), now_ms=JAN_11_MS) == [(LATE, False)]


def test_a_lifetime_drops_what_is_older_than_it_may_idle_and_what_else_takes_it_says_so() -> None:
    idle = View("e", {"k": "k"}, features("count", "60s lifetime"), lifetime_idle_ms=DAY_MS)
    far = View("e", {"k": "k"}, features("count", f"{10 * DAY_MS // 1000}s"))
    store = Both(schema_of(idle=idle, far=far))
    told = partly(store, row(JAN_11_MS), row(JAN_11_MS - DAY_MS), row(JAN_11_MS - DAY_MS - 1))
    assert told == [(0, False), (0, True), (0, True)]  # by the window, and then by the lifetime as well
    got = read(store)
    assert got["idle.count_lifetime"] == (PRESENT, 2)
    assert got["far.count_864000s"] == (PRESENT, 3)


def test_a_lifetime_idles_since_it_was_fed_and_not_since_what_it_was_fed_had_happened() -> None:
    view = View("e", {"k": "k"}, features("count", "60s lifetime"), lifetime_idle_ms=400 * DAY_MS)
    store = Both(schema_of(replace(KIND, lateness_ms=400 * DAY_MS), v=view), clock="wall")
    store.submit("e", [row(JAN_11_MS - 399 * DAY_MS)], now_ms=JAN_11_MS)
    later = JAN_11_MS + 400 * DAY_MS
    for now_ms in (JAN_11_MS, JAN_11_MS + 2 * DAY_MS, later):
        assert read(store, now_ms=now_ms)["v.count_lifetime"] == (PRESENT, 1)
    store.engine.state.sweep()
    assert read(store, now_ms=later)["v.count_lifetime"] == (PRESENT, 1)
    store.restart(threads=1)
    assert read(store, now_ms=later + 1)["v.count_lifetime"] == (NOT_FOUND, 0)
    store.submit("e", [row(later + 1)], now_ms=later + 1)
    assert read(store, now_ms=later + 1)["v.count_lifetime"] == (PRESENT, 1), "it has begun again"


def test_no_vector_counts_an_event_in_a_window_and_has_a_lifetime_without_it() -> None:
    """One that was accepted so late that its lifetime may not speak of that time."""
    view = View("e", {"k": "k"}, features("count", "86400s lifetime"), lifetime_idle_ms=400 * DAY_MS)
    store = Both(schema_of(replace(KIND, lateness_ms=400 * DAY_MS), v=view), clock="wall")
    for days in (401, 400, 399):
        _, vectors = store.submit("e", [row(JAN_11_MS - days * DAY_MS)], "s", now_ms=JAN_11_MS)
        assert vectors is not None
        expected = UNAVAILABLE if days == 401 else PRESENT
        assert {name: one.status for name, one in vectors.got(0)} == dict.fromkeys(
            ("v.count_86400s", "v.count_lifetime"), expected
        )


def test_the_golden_store_of_lifetimes_knows_when_each_was_last_fed(tmp_path: Path) -> None:
    """One that was fed by late events idles from then on; in rows of before, from its newest event."""
    shutil.copytree(GOLDEN, tmp_path / "store")
    assert list(verify(tmp_path / "store")) == []

    def of_anna(engine: Engine) -> list[tuple[int, float]]:
        vectors = engine.read(0, {"account": text_column(["anna"])[0]}, 1)
        return list(zip(vectors.statuses[0].tolist(), vectors.values[0].tolist(), strict=True))

    day_ms = 24 * store_fed.HOUR_MS
    with Engine.open(tmp_path / "store") as engine:
        assert engine.recovered.events == 0, "they are in the rows"
        assert of_anna(engine) == [(PRESENT, 2), (PRESENT, 10)]
        store_fed.send(engine, store_fed.FED_MS + day_ms, "bert", 1.0)
        assert of_anna(engine) == [(PRESENT, 2), (PRESENT, 10)]
        store_fed.send(engine, store_fed.FED_MS + day_ms + 1, "bert", 1.0)
        assert of_anna(engine)[0] == (NOT_FOUND, 0)
