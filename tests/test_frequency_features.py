"""Views with `store: sketch`: never below the truth, seldom far above it, and what they refuse."""

from __future__ import annotations

import math
import random
import struct
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference.both import Both
from reference.engine import Engine
from reference.naive import (
    ACCEPTED,
    LATE,
    NOT_FOUND,
    PRESENT,
    UNAVAILABLE,
    WARMING,
    EventType,
    Row,
    Schema,
    View,
)
from reference.written import features, yaml

from featurestore.core.frequency import summaries
from featurestore.core.state import State
from featurestore.errors import SchemaError
from featurestore.plan import MAX_FUTURE_MS, Plan, Structure
from featurestore.schema import compile_schema

FEATURES = features("count", "10s 60s") + features("sum", "60s", value="x")
KIND = EventType({"k": "key", "q": "key", "x": "number"}, lateness_ms=20_000)
NAMES = [f"v.{feature.name}" for feature in FEATURES]


def schema(sketch: tuple[float, float] = (0.01, 0.01), **views: View) -> Schema:
    pairs = View("e", {"k": "k", "q": "q"}, FEATURES, sketch=sketch)
    return Schema({"e": KIND}, {"v": pairs, **views}, {"s": NAMES})


def opened(clock: str = "event") -> Both:
    return Both(schema(), clock=clock)


def answers(store: Both, as_of: int | None, key: str = "a", **options: Any) -> list[tuple[int, float]]:
    _, vectors = store.read("s", {"k": key, "q": "z"}, as_of=as_of, **options)
    return [(got.status, got.value) for _, got in vectors.got(0)]


def pair(time: int, key: str = "a", x: object = 1.0) -> Row:
    return Row(time, {"k": key, "q": "z", "x": x})


def test_a_key_alone_in_its_cells_is_counted_to_within_a_slice() -> None:
    store = opened()
    store.submit("e", [pair(1_000_000, "warm")])
    rows = [pair(1_100_000 + 1_000 * i, x=0.5) for i in range(30)]
    store.submit("e", rows, "s")
    count_10s, count_60s, sum_60s = answers(store, 1_129_000)
    assert count_60s == (PRESENT, 30.0)
    assert sum_60s == (PRESENT, 15.0)
    assert count_10s[0] == PRESENT
    assert 10 <= count_10s[1] <= 13  # the window, and what else is in the slice that its edge cuts
    assert answers(store, 1_129_000, key="never") == [(NOT_FOUND, 0.0)] * 3


def test_what_it_says_before_it_knows() -> None:
    store = opened()
    assert answers(store, 1_000_000) == [(WARMING, 0.0)] * 3
    store.submit("e", [pair(1_000_000)])
    store.submit("e", [pair(1_009_998, "z")])
    assert answers(store, 1_009_998) == [(WARMING, 1.0)] * 3
    store.submit("e", [pair(1_010_000, "z")])
    assert [status for status, _ in answers(store, 1_010_000)] == [NOT_FOUND, WARMING, WARMING]
    store.submit("e", [pair(2_000_000)])
    # Both windows are kept, with lateness, 80 s: what begins before is not answered.
    assert [status for status, _ in answers(store, 1_930_000)] == [NOT_FOUND, UNAVAILABLE, UNAVAILABLE]
    assert [status for status, _ in answers(store, 1_929_999)] == [UNAVAILABLE] * 3


def test_values_that_are_not_above_0_add_nothing_to_a_sum() -> None:
    store = opened()
    store.submit("e", [pair(1_000_000, "warm")])
    store.submit("e", [pair(1_100_000, x=x) for x in (2.0, -5.0, 0.0, None, 0.25)], "s")
    assert answers(store, 1_100_000) == [(PRESENT, 5.0), (PRESENT, 5.0), (PRESENT, 2.25)]
    store.submit("e", [pair(1_100_000, "b", x=-1.0)])
    assert answers(store, 1_100_000, "b") == [(PRESENT, 1.0), (PRESENT, 1.0), (NOT_FOUND, 0.0)]


@pytest.mark.parametrize("clock", ["event", "wall"])
def test_late_is_what_the_clock_of_the_type_says(clock: str) -> None:
    """Also on a wall clock, of which the newest event may be 10 s ahead."""
    store = opened(clock)
    now = 1_100_000
    options = {"now_ms": now} if clock == "wall" else {}
    ahead = 10_000 if clock == "wall" else 0
    rows = [pair(now + ahead), pair(now - 79_999), pair(now - 80_001)]
    taken, _ = store.submit("e", rows, "s", **options)
    assert [answer.outcome for answer in taken] == [ACCEPTED, ACCEPTED, LATE]
    assert answers(store, now - 20_000, **options)[1][1] == 1.0, "an event that was let in was not counted"


@pytest.mark.parametrize("max_future_ms", [-1, MAX_FUTURE_MS + 1])
def test_no_clock_lets_in_what_a_sketch_could_not_keep(max_future_ms: int) -> None:
    """An event from so far ahead would push out of a sketch what the clock still lets in."""
    plan = compile_schema(yaml(schema()))
    State(plan, clock="wall", max_future_ms=MAX_FUTURE_MS)
    with pytest.raises(
        ValueError, match=f"max_future_ms is {max_future_ms}; it is 0 to 10000, since sketches"
    ):
        State(plan, clock="wall", max_future_ms=max_future_ms)


def test_one_that_is_late_for_the_sketch_only_is_accepted() -> None:
    rows = View("e", {"k": "k"}, features("count", "600s"))
    store = Both(schema(w=rows))
    store.submit("e", [pair(1_000_000)])
    taken, _ = store.submit("e", [pair(1_000_000 - 80_001)], "s")
    assert taken[0].outcome == ACCEPTED


def test_no_row_is_made_for_what_only_sketches_keep() -> None:
    store = opened()
    store.submit("e", [pair(1_000_000 + i, str(i)) for i in range(1_000)])
    stats = store.engine.state.stats()
    assert stats["rows"] == 0
    empty = Engine(yaml(schema()))
    taken = empty.state.stats()["used_bytes"]
    assert stats["used_bytes"] == taken, "memory is taken as the schema is applied"


def test_forgetting_a_key_leaves_what_nobody_can_name() -> None:
    store = opened()
    store.submit("e", [pair(1_000_000)])
    assert not store.engine.forget({"k": "a", "q": "z"})
    assert answers(store, 1_000_000)[0] == (WARMING, 1.0)


def test_a_view_that_goes_frees_its_sketch_and_starts_empty_when_it_comes_back() -> None:
    with_rows = schema(w=View("e", {"k": "k"}, features("count", "60s")))
    store = Both(with_rows)
    before = store.engine.state.stats()["used_bytes"]
    store.submit("e", [pair(1_000_000)])
    without = Schema(with_rows.events, {"w": with_rows.views["w"]}, {"s": ["w.count_60s"]})
    store.apply(without)
    assert store.engine.state.stats()["used_bytes"] < before - 1_000_000
    assert all(view.structure is Structure.LOG for view in store.engine.plan.views)
    store.apply(with_rows)
    assert answers(store, 1_000_000) == [(WARMING, 0.0)] * 3
    store.submit("e", [pair(1_000_001)])
    assert answers(store, 1_000_001)[0] == (WARMING, 1.0)


def test_other_views_come_and_go_beside_it() -> None:
    store = opened()
    store.submit("e", [pair(1_000_000)])
    more = View("e", {"q": "q"}, features("count", "60s"), sketch=(0.1, 0.5))
    store.apply(schema(another=more))
    store.submit("e", [pair(1_000_001)])
    store.apply(schema())
    assert answers(store, 1_000_001)[0] == (WARMING, 2.0)
    store.restart(threads=1)
    assert answers(store, 1_000_001)[0] == (WARMING, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sketch": (0.02, 0.01)}, "epsilon was 0.01, is 0.02"),
        ({"sketch": (0.01, 0.02)}, "delta was 0.01, is 0.02"),
        ({"features": features("count", "10s 70s")}, "keep was 80s, is 90s; windows without 1m, with 70s"),
        ({"sketch": None}, None),
    ],
)
def test_what_a_sketch_is_made_by_may_not_change(change: dict[str, Any], message: str | None) -> None:
    before = schema()
    counts = features("count", "10s 60s")
    view = replace(before.views["v"], features=counts)
    plan = compile_schema(yaml(Schema(before.events, {"v": view}, {"s": [f"v.{counts[0].name}"]})))
    text = yaml(Schema(before.events, {"v": replace(view, **change)}, {"s": [f"v.{counts[0].name}"]}))
    if message is None:  # rows are another structure: another view, which starts empty
        assert compile_schema(text, previous=plan).views[0].view_id == 2
        return
    with pytest.raises(SchemaError) as raised:
        compile_schema(text, previous=plan)
    assert message in str(raised.value)


def test_a_plan_with_sketches_is_read_back_as_it_was() -> None:
    plan = compile_schema(yaml(schema()))
    assert Plan.from_json(plan.to_json()) == plan
    assert [view.structure for view in plan.views] == [Structure.COUNTMIN] * 2
    assert plan.views[0].windows_ms == (10_000, 60_000)


# Against exact dictionaries


def test_many_keys_never_below_and_seldom_more_than_epsilon_above() -> None:
    epsilon, delta, n_shards = 0.005, 0.1, 4
    engine = Engine(yaml(schema((epsilon, delta))), n_shards=n_shards)
    draw = np.random.default_rng(7)
    n = 60_000
    keys = np.minimum(draw.zipf(1.2, n), 30_000)
    times = 1_000_000 + np.sort(draw.integers(0, 40_000, n))
    xs = draw.uniform(0, 100, n)
    for at in range(0, n, 1_000):
        part = slice(at, at + 1_000)
        data = {"ts": times[part], "k": [str(k) for k in keys[part]], "q": ["z"] * 1_000, "x": xs[part]}
        engine.submit("e", data)
    assert engine.state.stats()["rows"] == 0
    counts = Counter(keys.tolist())
    sums = dict.fromkeys(counts, 0.0)
    for key, x in zip(keys.tolist(), xs.tolist(), strict=True):
        sums[key] += x
    asked = sorted(counts)
    vectors = engine.read(
        "s", {"k": [str(k) for k in asked], "q": ["z"] * len(asked)}, len(asked), as_of=int(times[-1])
    )
    for name, truths, total in (("v.count_60s", counts, n), ("v.sum_x_60s", sums, xs.sum())):
        j = vectors.names.index(name)
        truth = np.array([truths[key] for key in asked])
        values, lower, upper = vectors.values[:, j], vectors.lower[:, j], vectors.upper[:, j]
        rounding = 1e-9 * truth
        assert (values >= truth - rounding).all()
        assert (values == upper).all()
        above = (lower > truth + rounding).mean()
        assert above <= delta, f"{name}: {above:.1%} of lower bounds are wrong"
        # The bound is of the shard's N, which is less than all.
        assert (values - truth > epsilon * total).mean() <= delta
        assert (values - lower <= epsilon * total * (1 + 1e-9)).all()
        assert (lower > 0).any()
        assert (values > truth * 1.01).any(), "keys did not share cells: nothing was tested"


def test_where_what_and_windows_have_a_sketch_each() -> None:
    text = """\
version: 1
name: t
events:
  e: {time: {field: ts, unit: ms}, fields: {k: key, x: number, s: string}}
views:
  v:
    event: e
    key: k
    store: sketch
    where: x < 10
    windows: [1m, 1h]
    features:
      - count
      - sum(x)
      - {name: loud, aggregate: count, where: s == "u", windows: [1m]}
services: {s: [v.*]}
"""
    engine = Engine(text)
    assert len(engine.plan.views) == 3
    rows = [(i % 20, "u" if i % 3 else "w") for i in range(60)]
    data = {"ts": [1_000_000] * 60, "k": ["a"] * 60, "x": [x for x, _ in rows], "s": [s for _, s in rows]}
    engine.submit("e", data)
    got = dict(engine.read("s", {"k": ["a"]}, as_of=1_000_000).got(0))
    taken = [(x, s) for x, s in rows if x < 10]
    assert got["v.count_1h"].value == len(taken)
    assert got["v.sum_x_1m"].value == sum(x for x, _ in taken)
    assert got["v.loud_1m"].value == sum(s == "u" for _, s in taken)
    assert got["v.count_1h"].lower < got["v.count_1h"].value


MAX_COUNT = 2**31 - 1
HEAD = 0xFFFFFFFF


def nearly_full(records: bytes, count: int) -> bytes:
    """Records of a shard's sketches of counts (frequency.pxd, countmin.pxd) in which every counter that is 1
    is `count` instead, and every total with it."""
    out, at = bytearray(records), 0
    while at < len(out):
        (size,) = struct.unpack_from("<I", out, at + 16)
        number, payload_bytes = struct.unpack_from("<II", out, at + 20)
        payload, end = at + 28, at + 28 + payload_bytes
        at += 20 + size
        if number == HEAD:
            (levels,) = struct.unpack_from("<I", out, payload + 20)
            for total in range(payload + 48 + 16 * levels, end, 8):
                if struct.unpack_from("<d", out, total) == (1.0,):
                    struct.pack_into("<d", out, total, count)
            continue
        while payload < end:
            (mask,) = struct.unpack_from("<Q", out, payload + 8)
            payload += 16
            for counter in range(payload, payload + 4 * mask.bit_count(), 4):
                assert struct.unpack_from("<I", out, counter) == (1,)
                struct.pack_into("<I", out, counter, count)
            payload += 8 * -(-mask.bit_count() // 2)
    return bytes(out)


def test_a_count_that_is_full_says_n_which_is_certain() -> None:
    """2^31 events of one key, but for most of them: counters of one event are written up in their records."""
    counts = View("e", {"k": "k", "q": "q"}, features("count", "10s 60s"), sketch=(0.01, 0.01))
    text = yaml(Schema({"e": KIND}, {"v": counts}, {"s": ["v.count_10s", "v.count_60s"]}))
    before, engine = Engine(text, n_shards=1), Engine(text, n_shards=1)
    before.submit("e", {"ts": [1_000_000], "k": ["a"], "q": ["z"]})
    _, head = before.state.cut()
    before.state.copy_shard(0)
    engine.state.import_head(head)
    engine.state.import_sketches(0, nearly_full(bytes(before.state.copy_sketches(0)), MAX_COUNT - 1))

    def add(key: str, at: int, n: int = 1, **options: Any) -> Any:
        _, vectors = engine.submit("e", {"ts": [at] * n, "k": [key] * n, "q": ["z"] * n}, "s", **options)
        assert vectors is not None
        return list(dict(vectors.got(n - 1)).values())[1]

    def read(key: str, at: int, truth: int) -> Any:
        got = dict(engine.read("s", {"k": [key], "q": ["z"]}, as_of=at).got(0))["v.count_60s"]
        assert got.lower <= truth <= got.upper == got.value
        return got

    assert read("a", 1_000_000, MAX_COUNT - 1).value == MAX_COUNT - 1
    full_records = nearly_full(bytes(before.state.copy_sketches(0)), MAX_COUNT)
    assert [each.n_saturated for each in summaries(full_records).values()] == [5 * 3], "5 rows, 3 levels"
    peeked = add("a", 1_000_000, peek=True)
    assert (peeked.value, peeked.upper) == (MAX_COUNT, MAX_COUNT)
    assert add("a", 1_000_000) == peeked
    assert add("a", 1_000_000, 5).value == MAX_COUNT + 5, "its counters are full: N, here all its own"
    assert add("b", 1_000_000).value == 1.0, "who shares no full cell is as before"
    full = read("a", 1_000_000, MAX_COUNT + 5)
    assert full.value == MAX_COUNT + 6
    assert full.lower == pytest.approx(MAX_COUNT - math.e / 272 * (MAX_COUNT + 6))
    engine.restart()
    assert read("a", 1_000_000, MAX_COUNT + 5) == full
    add("b", 1_070_000)
    add("a", 1_070_000)
    assert read("a", 1_070_000, 1).value == 1.0, "what was full has aged"


def test_a_sum_beyond_all_numbers_is_unavailable_and_others_are_not() -> None:
    store = opened()
    store.submit("e", [pair(1_000_000, "warm")])

    def read(key: str, at: int) -> Any:
        vectors = store.engine.read("s", {"k": [key], "q": ["z"]}, as_of=at)
        return dict(vectors.got(0))

    rows = [pair(1_100_000, x=1.7e308) for _ in range(3)] + [pair(1_100_000, str(i), x=2.0) for i in range(9)]
    _, seen = store.engine.submit("e", store._data("e", rows), "s")
    assert seen is not None
    got = read("a", 1_100_000)
    assert got["v.count_60s"].value == 3.0
    assert got["v.sum_x_60s"].status == UNAVAILABLE
    assert all(math.isnan(each) for each in (got["v.sum_x_60s"].value, got["v.sum_x_60s"].upper))
    assert [vector["v.sum_x_60s"].status for vector in map(dict, map(seen.got, range(3)))] == [
        PRESENT, UNAVAILABLE, UNAVAILABLE,
    ]  # fmt: skip
    for i in range(9):  # also of the shard whose N is infinite
        other = read(str(i), 1_100_000)["v.sum_x_60s"]
        assert (other.status, other.value, other.upper) == (PRESENT, 2.0, 2.0)
        assert 0 <= other.lower <= 2.0
    store.engine.restart()
    assert read("a", 1_100_000)["v.sum_x_60s"].status == UNAVAILABLE
    store.engine.submit("e", store._data("e", [pair(1_180_000, x=3.0)]))
    assert read("a", 1_180_000)["v.sum_x_60s"].value == 3.0, "what was infinite has aged"


@pytest.mark.parametrize("seed", range(3))
def test_threads_and_batches_do_not_matter(seed: int) -> None:
    draw = random.Random(seed)
    store = opened()
    at = 1_000_000
    for _ in range(30):
        rows = []
        for _ in range(draw.randrange(1, 400)):
            at += draw.randrange(100)
            rows.append(pair(at - draw.randrange(30_000), str(draw.randrange(200)), x=draw.uniform(-1, 9)))
        store.engine.submit("e", store._data("e", rows))
        store.journal.append(_submitted(rows))
    digest = store.engine.state.digest()
    assert store.replayed([1, 7, 3_000, 41], threads=4).state.digest() == digest
    store.restart(threads=3)


def _submitted(rows: list[Row]) -> Any:
    from reference.both import Submitted

    return Submitted("e", tuple(rows), {})


# Mistakes


def refusal(settings: str, features: str = "[count]", more: str = "") -> str:
    text = f"""\
version: 1
name: t
events:
  e: {{time: {{field: ts, unit: ms}}, fields: {{k: key, x: number}}}}
views:
  v: {{event: e, key: k, windows: [1h], {settings}, features: {features}}}
{more}
"""
    with pytest.raises(SchemaError) as raised:
        compile_schema(text, path="f.yaml")
    assert str(raised.value).startswith("f.yaml:")
    return str(raised.value)


@pytest.mark.parametrize(
    ("settings", "features", "more", "message"),
    [
        ("store: sketches", "[count]", "", "store of view v must be one of rows, sketch"),
        ("epsilon: 0.1", "[count]", "", "epsilon of view v is a setting of views with `store: sketch`; add"),
        (
            "store: rows, delta: 0.1",
            "[count]",
            "",
            "delta of view v is a setting of views with",
        ),
        (
            "store: sketch, offset: 1h",
            "[count]",
            "",
            "of views with `store: rows`; a sketch has",
        ),
        ("store: sketch, max_error: 0.1", "[count]", "", "a sketch has epsilon and delta; leave it out"),
        ("store: sketch, epsilon: 0.5", "[count]", "", "epsilon of view v must be 1e-05 to 0.1"),
        ("store: sketch, delta: 0", "[count]", "", "delta of view v must be 1e-06 to 0.5"),
        ("store: sketch", "[max(x)]", "", "a sketch keeps counts and sums only; put max into a view without"),
        ("store: sketch", "[distinct(x)]", "", "put distinct into a view without `store: sketch`"),
        ("store: sketch", '["decayed_sum(x, 1h)"]', "", "put decayed_sum into a view without"),
        ("store: sketch", "[{aggregate: count, windows: [lifetime]}]", "", "keeps no lifetime; use windows"),
        ("store: sketch", "[{aggregate: count, self: exclude}]", "", "leave `self: exclude` out"),
        (
            "store: sketch",
            f"[{{aggregate: count, windows: [{', '.join(f'{i}m' for i in range(1, 17))}]}}]",
            "",
            "windows that one sketch cannot cut into slices: at most 15",
        ),
        (
            "store: sketch",
            "[{aggregate: sum(x), windows: [1s, 400d]}, count]",
            "",
            None,
        ),
        (
            "store: sketch",
            "[count]",
            "keep_keys: [k]",
            "all views of k are sketches, which keep",
        ),
    ],
)
def test_mistakes_say_what_was_meant(settings: str, features: str, more: str, message: str | None) -> None:
    if message is None:  # far apart, and yet it can be cut
        with pytest.raises(pytest.fail.Exception):
            refusal(settings, features, more)
        return
    assert message in refusal(settings, features, more)
