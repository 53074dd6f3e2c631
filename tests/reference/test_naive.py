"""The naive store against examples counted by hand, and against SQL over real data, before it is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from reference.naive import (
    ACCEPTED,
    BAD_KEY,
    BAD_TYPE,
    BEYOND_DEDUPE,
    DAY_MS,
    DUPLICATE,
    FUTURE,
    HOUR_MS,
    KEY_TOO_LONG,
    LATE,
    LATEST_MS,
    NO_ID,
    NO_TIME,
    NOT_FINITE,
    NOT_FOUND,
    PRESENT,
    TIME_RANGE,
    UNAVAILABLE,
    WARMING,
    ContentDiffers,
    EventType,
    Feature,
    Row,
    Schema,
    SequenceRefused,
    Store,
    View,
)

AGGREGATES = ("sum", "mean", "min", "max", "stddev", "first", "last")


def one_view(view: View, *, kind: EventType | None = None, **views: View) -> Schema:
    """A schema of one event type `e`, the view `v` and perhaps others, and a service `s` of everything."""
    kind = kind or EventType({"k": "key", "x": "number"}, lateness_ms=1000)
    every = {"v": view, **views}
    names = [f"{name}.{feature.name}" for name, plan in every.items() for feature in plan.features]
    return Schema({"e": kind}, every, {"s": names})


def counting(window_ms: int = 10_000, **options: object) -> View:
    return View("e", {"k": "k"}, (Feature("count", "count", window_ms),), **options)  # type: ignore[arg-type]


def at(time: int | None, key: object = "a", x: object = 1.0, **fields: object) -> Row:
    return Row(time, {"k": key, "x": x, **fields})


def outcomes(store: Store, *rows: Row, **options: object) -> list[int]:
    return [answer.outcome for answer in store.submit("e", rows, **options)]  # type: ignore[arg-type]


def value(store: Store, as_of: int | None = None, key: object = "a", feature: int = 0) -> float:
    return store.read("s", {"k": key}, as_of=as_of)[feature].value


def test_a_window_is_open_on_the_left_and_closed_on_the_right() -> None:
    store = Store(one_view(counting(), kind=EventType({"k": "key", "x": "number"}, HOUR_MS)))
    store.submit("e", [at(0), at(1), at(10_000)])
    assert [value(store, t) for t in (-1, 0, 1, 9_999, 10_000)] == [0, 1, 2, 2, 2]
    assert [value(store, t) for t in (10_001, 19_999, 20_000)] == [1, 1, 0]


def test_an_offset_moves_both_edges() -> None:
    store = Store(one_view(counting(offset_ms=5_000)))
    store.submit("e", [at(0)])
    assert [value(store, t) for t in (4_999, 5_000, 14_999, 15_000)] == [0, 1, 1, 0]


def test_every_aggregate_by_hand() -> None:
    features = tuple(Feature(name, name, 10_000, "x") for name in AGGREGATES)
    features += (Feature("since_first", "since_first", 10_000), Feature("since_last", "since_last", 10_000))
    store = Store(one_view(View("e", {"k": "k"}, features)))
    # Arrival order is not time order; two events share a time, so the position decides; one has no x.
    store.submit("e", [at(3000, x=-2), at(1000, x=4), at(3000, x=7), at(4000, x=None)])
    got = dict(
        zip(AGGREGATES, [truth.value for truth in store.read("s", {"k": "a"}, as_of=5000)], strict=False)
    )
    assert got == {
        "sum": 9,
        "mean": 3,
        "min": -2,
        "max": 7,
        "stddev": pytest.approx(math.sqrt(14)),
        "first": 4,
        "last": 7,
    }
    assert [truth.value for truth in store.read("s", {"k": "a"}, as_of=5000)[-2:]] == [4000, 1000]


def test_self_exclude_reads_just_before_the_event() -> None:
    features = (
        Feature("all", "count", 10_000),
        Feature("others", "count", 10_000, exclude_self=True),
        Feature("since_last", "since_last", 10_000),
    )
    store = Store(one_view(View("e", {"k": "k"}, features)))
    vectors = [answer.vector for answer in store.submit("e", [at(0), at(700), at(700)], "s")]
    assert [[t.value for t in v or []] for v in vectors[1:]] == [[2, 1, 700], [3, 2, 0]]
    assert [t.value for t in (vectors[0] or [])[:2]] == [1, 0]
    assert math.isnan((vectors[0] or [])[2].value)


def test_statuses_by_precedence() -> None:
    store = Store(one_view(counting(), other=counting(40_000)))
    store.submit("e", [at(0), at(25_000)])
    # `v` keeps 11 s behind 25 s; it went live at 0.
    truth = {t: store.read("s", {"k": "a"}, as_of=t)[0] for t in (5_000, 23_999, 24_000, 25_000, 60_000)}
    assert truth[5_000].status == UNAVAILABLE
    assert truth[23_999].status == UNAVAILABLE
    assert truth[24_000].status == NOT_FOUND
    assert truth[25_000].status == PRESENT
    assert (truth[60_000].status, truth[60_000].coverage) == (WARMING, 0)  # beyond the clock
    assert store.read("s", {"k": "b"}, as_of=25_000)[0].status == NOT_FOUND
    assert store.read("s", {}, as_of=25_000)[0].status == UNAVAILABLE
    warming = store.read("s", {"k": "a"}, as_of=30_000)[1]
    assert (warming.status, warming.value, warming.coverage) == (WARMING, 2, 25_001 / 40_000)


def test_late_is_per_view_and_an_event_is_late_when_every_view_dropped_it() -> None:
    store = Store(one_view(counting(10_000), long=counting(50_000)))
    assert outcomes(store, at(100_000), at(89_000), at(88_999), at(49_000), at(48_999)) == [0, 0, 0, 0, LATE]
    assert [truth.n for truth in store.read("s", {"k": "a"}, as_of=100_000)] == [1, 3]


def test_an_event_that_matches_no_view_is_accepted_and_moves_the_clock() -> None:
    view = View(
        "e", {"k": "k"}, (Feature("count", "count", 10_000),), where=lambda f: f["x"] is not None or None
    )
    store = Store(one_view(view))
    assert outcomes(store, at(50_000, x=None), at(0, key=""), at(0)) == [ACCEPTED, ACCEPTED, LATE]
    assert store.now("e") == 50_000


def test_refusals_by_form() -> None:
    store = Store(
        one_view(counting(), kind=EventType({"k": "key", "x": "number", "b": "bool", "s": "string"}))
    )
    cases = {
        NO_TIME: at(None),
        TIME_RANGE: at(LATEST_MS + 1),
        NOT_FINITE: at(0, x=math.inf),
        BAD_KEY: at(0, key=1.5),
        KEY_TOO_LONG: at(0, key="é" * 2049),
        BAD_TYPE: at(0, x="one"),
    }
    assert {code: outcomes(store, row)[0] for code, row in cases.items()} == {code: code for code in cases}
    assert outcomes(store, at(0, b="on"), at(0, s=1.5), at(0, key=True)) == [BAD_TYPE] * 3
    assert outcomes(store, at(0, key="é" * 2048), at(0, b=True, s="")) == [ACCEPTED, ACCEPTED]


def test_an_integer_an_integral_float_and_its_text_are_one_key() -> None:
    store = Store(one_view(counting()))
    store.submit("e", [at(0, key=596), at(1, key="596"), at(2, key=596.0)])
    assert value(store, 2, key=596) == 3


def test_the_wall_clock_never_turns_back() -> None:
    store = Store(one_view(counting()), clock="wall")
    assert outcomes(store, at(100_000), at(110_001), now_ms=100_000) == [ACCEPTED, FUTURE]
    assert outcomes(store, at(88_999), at(89_000), now_ms=50_000) == [LATE, ACCEPTED]
    assert store.read("s", {"k": "a"}, now_ms=60_000)[0].n == 1


def test_an_id_is_remembered_on_the_clock_and_the_first_wins() -> None:
    kind = EventType({"k": "key", "x": "number", "id": "string"}, HOUR_MS, id_field="id", dedupe_ms=5_000)
    store = Store(one_view(counting(), kind=kind))
    # The id "1" is forgotten at 5,001; an event before 1 is then older than the horizon, its id known or not.
    steps = [
        (at(0, id="1"), ACCEPTED),
        (at(5_000, id="1"), DUPLICATE),
        (at(5_000, id="2"), ACCEPTED),
        (at(5_001, id="1"), ACCEPTED),
        (at(4_000, id="2"), DUPLICATE),
        (at(0, id="2"), BEYOND_DEDUPE),
        (at(0, id="3"), BEYOND_DEDUPE),
        (at(1, id="3"), ACCEPTED),
        (at(1), NO_ID),
    ]
    assert outcomes(store, *(row for row, _ in steps)) == [outcome for _, outcome in steps]


def test_a_producers_sequences_within_the_window() -> None:
    store = Store(one_view(counting()))

    def send(sequence: int, epoch: int = 1, time: int = 0) -> int:
        return outcomes(store, at(time), producer=b"p", epoch=epoch, sequence=sequence)[0]

    assert [send(5), send(3), send(5), send(1029)] == [ACCEPTED, ACCEPTED, DUPLICATE, ACCEPTED]
    assert send(5) == DUPLICATE
    with pytest.raises(SequenceRefused, match="too far below"):
        send(4)
    with pytest.raises(ContentDiffers):
        send(1029, time=1)
    assert send(1, epoch=2) == ACCEPTED
    with pytest.raises(SequenceRefused, match="fenced off"):
        send(2000)


def test_forget_empties_the_row_in_every_view() -> None:
    features = (Feature("count", "count", 10_000), Feature("ever", "count"))
    store = Store(one_view(View("e", {"k": "k"}, features), pair=View("e", {"k": "k", "x": "x"}, features)))
    store.submit("e", [at(0, x=None), at(0, key="b", x=None)])
    assert store.forget({"k": "a"}) and not store.forget({"k": "c"})
    assert [value(store, 0, key, feature) for key in "ab" for feature in (0, 1)] == [0, 0, 1, 1]
    store.submit("e", [at(5, x=None)])
    assert [value(store, 5, "a", feature) for feature in (0, 1)] == [1, 1]


def test_lifetime_is_dropped_after_idling_and_known_in_the_middle_as_far_as_the_log_reaches() -> None:
    features = (Feature("ever", "sum", 0, "x"), Feature("count", "count", 1_000))
    kind = EventType({"k": "key", "x": "number"}, lateness_ms=1000, from_beginning=True)
    store = Store(one_view(View("e", {"k": "k"}, features, lifetime_idle_ms=50_000), kind=kind))
    store.submit("e", [at(100, x=1), at(200, x=2)])
    read = [store.read("s", {"k": "a"}, as_of=t)[0] for t in (99, 100, 199, 200, 900)]
    assert [(each.status, each.value) for each in read] == [
        (NOT_FOUND, 0),
        (PRESENT, 1),
        (PRESENT, 1),
        (PRESENT, 3),
        (WARMING, 3),  # beyond the clock
    ]
    store.submit("e", [at(2_300, x=4)])
    read = [store.read("s", {"k": "a"}, as_of=t)[0] for t in (298, 299, 2_299, 2_300)]
    assert [each.status for each in read] == [UNAVAILABLE, PRESENT, PRESENT, PRESENT]
    assert [each.exact for each in read[1:]] == [False, False, True], "the log has lost what came before"
    store = Store(one_view(View("e", {"k": "k"}, features, lifetime_idle_ms=50_000), kind=kind))
    store.submit("e", [at(100, x=1), at(200, x=2)])
    store.submit("e", [at(50_200, key="b")])
    assert value(store, 50_200) == 3
    store.submit("e", [at(50_201, key="b")])
    assert store.read("s", {"k": "a"}, as_of=50_201)[0].status == NOT_FOUND
    store.submit("e", [at(50_201, x=5)])
    assert value(store, 50_201) == 5
    assert store.read("s", {"k": "a"}, as_of=200)[0].status == UNAVAILABLE  # it had not ended, then


def test_a_view_has_seen_what_came_since_it_was_made_or_everything_where_that_is_stated() -> None:
    features = (Feature("ever", "count"), Feature("count", "count", 1_000))
    kind = EventType({"k": "key", "x": "number"}, lateness_ms=1000)
    for clock, now in (("event", {}), ("merged", {}), ("wall", {"now_ms": 5_000})):
        store = Store(one_view(View("e", {"k": "k"}, features), kind=kind), clock=clock)
        store.submit("e", [at(5_000)], **now)  # type: ignore[arg-type]
        read = store.read("s", {"k": "a"}, as_of=5_000)
        assert [(t.status, t.value, t.coverage) for t in read] == [(WARMING, 1, 0), (WARMING, 1, 0.001)]
        stated = replace(kind, from_beginning=True)
        store = Store(one_view(View("e", {"k": "k"}, features), kind=stated), clock=clock)
        store.submit("e", [at(5_000)], **now)  # type: ignore[arg-type]
        assert [t.status for t in store.read("s", {"k": "a"}, as_of=5_000)] == [PRESENT] * 2
        # A view that is added has seen nothing that came, nor what may have come from beyond the clock.
        more = one_view(View("e", {"k": "k"}, features), kind=stated, more=View("e", {"k": "k"}, features))
        store.apply(more, 5_000)
        since = 15_001 if clock == "wall" else 5_001
        store.submit("e", [at(since + 999, key="b")], **dict.fromkeys(now, since + 999))  # type: ignore[arg-type]
        read = store.read("s", {"k": "a"}, as_of=since + 999)
        assert [(t.status, t.value) for t in read] == [(1, 1), (2, 0), (WARMING, 0), (NOT_FOUND, 0)]
        read = store.read("s", {"k": "a"}, as_of=since + 998)
        counted = PRESENT if since == 5_001 else NOT_FOUND  # the event at 5,000
        assert [t.status for t in read] == [PRESENT, counted, WARMING, WARMING]


def test_what_lies_beyond_the_clock_of_a_type_is_not_covered_and_one_clock_of_all_is_the_latest() -> None:
    kinds = {name: EventType({"k": "key"}, from_beginning=True) for name in "ab"}
    views = {
        name: View(name, {"k": "k"}, (Feature("n", "count", 1_000), Feature("ever", "count")))
        for name in "ab"
    }
    schema = Schema(kinds, views, {"s": ["a.n", "a.ever", "b.n", "b.ever"]})
    for clock, statuses in (
        ("event", [WARMING, WARMING, PRESENT, PRESENT]),
        ("merged", [NOT_FOUND, PRESENT, PRESENT, PRESENT]),
    ):
        store = Store(schema, clock=clock)
        store.submit("a", [Row(0, {"k": "k"})])
        store.submit("b", [Row(5_000, {"k": "k"})])
        assert [truth.status for truth in store.read("s", {"k": "k"})] == statuses
        assert [truth.value for truth in store.read("s", {"k": "k"})] == [0, 1, 1, 1]


def test_a_longer_window_warms_and_a_view_removed_and_added_starts_empty() -> None:
    short, long = (
        counting(10_000),
        View("e", {"k": "k"}, (*counting(10_000).features, Feature("long", "count", 90_000))),
    )
    store = Store(one_view(short))
    store.submit("e", [at(0), at(30_000)])
    store.apply(one_view(long), 30_000)
    assert outcomes(store, at(18_999), at(19_000)) == [LATE, ACCEPTED]
    read = store.read("s", {"k": "a"}, as_of=60_000)[1]
    assert (read.status, read.n) == (WARMING, 2)
    assert read.coverage == pytest.approx(11_001 / 90_000)  # from what was kept to the clock
    # The old feature may not speak of a span that was never kept, although the longer window would allow it.
    assert [store.read("s", {"k": "a"}, as_of=t)[0].status for t in (28_998, 28_999)] == [WARMING, PRESENT]
    store.apply(Schema(store.schema.events, {}, {"s": []}), 60_000)
    store.apply(one_view(long), 70_000)
    assert [truth.n for truth in store.read("s", {"k": "a"}, as_of=70_000)] == [0, 0]


def test_what_is_owed_exact_until_overflow_then_an_error_while_in_order() -> None:
    store = Store(one_view(counting(10_000, exact_events=2, max_error=0.05)))
    store.submit("e", [at(0), at(1)])
    assert (store.read("s", {"k": "a"}, as_of=1)[0].exact, store.read("s", {"k": "b"}, as_of=1)[0].exact) == (
        True,
        True,
    )
    store.submit("e", [at(50_000), at(50_001)])
    assert store.read("s", {"k": "a"}, as_of=50_001)[0].exact
    store.submit("e", [at(50_002)])
    read = store.read("s", {"k": "a"}, as_of=50_002)[0]
    assert (read.exact, read.error) == (False, 0.05)
    assert store.read("s", {"k": "a"}, as_of=50_001)[0].error is None
    # At 5 % a pair needs twenty newer events to be merged: with nineteen a late one cannot have met it.
    store.submit("e", [at(50_002)] * 17)
    store.submit("e", [at(50_000)])
    assert store.read("s", {"k": "a"}, as_of=50_002)[0].error == 0.05
    store.submit("e", [at(50_002), at(50_000)])
    assert store.read("s", {"k": "a"}, as_of=50_002)[0].error is None


def test_against_sql_on_card_transactions_of_twenty_customers(data_file: Callable[[str], Path]) -> None:
    path = data_file("card_transactions.parquet")
    windows = {"1d": DAY_MS, "7d": 7 * DAY_MS}
    features = tuple(
        Feature(f"{name}_{label}", name, ms, None if name == "count" else "x")
        for label, ms in windows.items()
        for name in ("count", *AGGREGATES)
    )
    store = Store(one_view(View("e", {"k": "k"}, features, offset_ms=DAY_MS)))
    sql = {"count": "count(*)", "stddev": "stddev_pop(x)"} | {n: f"{n}(x)" for n in ("sum", "min", "max")}
    sql |= {"mean": "avg(x)", "first": "arg_min(x, seq)", "last": "arg_max(x, seq)"}
    columns = ", ".join(
        f"""(SELECT {expression} FROM tx AS e WHERE e.k = tx.k AND e.seq <= tx.seq
             AND e.t > tx.t - {DAY_MS} - {ms} AND e.t <= tx.t - {DAY_MS}) AS {name}_{label}"""
        for label, ms in windows.items()
        for name, expression in sql.items()
    )
    rows = duckdb.execute(
        f"""WITH tx AS (SELECT seq, customer_id AS k, epoch_ms(tx_datetime) AS t, tx_amount AS x
            FROM read_parquet(?) WHERE customer_id < 20)
            SELECT k, t, x, {columns} FROM tx ORDER BY seq""",
        [str(path)],
    ).fetchall()
    names = [f"{name}_{label}" for label in windows for name in sql]
    order = [names.index(feature.name) for feature in features]
    assert len(rows) > 1500
    for k, t, x, *expected in rows:
        vector = store.submit("e", [at(t, k, x)], "s")[0].vector
        for truth, index in zip(vector or [], order, strict=True):
            wanted = math.nan if expected[index] is None else expected[index]
            if names[index].startswith("sum") and math.isnan(wanted):
                wanted = 0.0
            assert truth.value == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), (k, t, names[index])


def test_against_sql_on_out_of_order_attacks_on_one_honeypot(data_file: Callable[[str], Path]) -> None:
    path = data_file("honeypot_2013_spring.parquet")
    window_ms, lateness_ms = HOUR_MS, 5 * 60_000
    kind = EventType({"k": "key", "x": "number"}, lateness_ms)
    store = Store(one_view(counting(window_ms), kind=kind))
    # An event counts where it was not late when it came; what it sees is what came before it and itself.
    rows = duckdb.execute(
        f"""WITH a AS (SELECT seq, src_ip AS k, epoch_ms(ts) AS t,
                              max(epoch_ms(ts)) OVER (ORDER BY seq) AS now
                       FROM read_parquet(?) WHERE seq < 6000),
                 kept AS (SELECT * FROM a WHERE t >= now - {window_ms + lateness_ms})
            SELECT k, t, t >= now - {window_ms + lateness_ms},
                   (SELECT count(*) FROM kept AS e WHERE e.k = a.k AND e.seq <= a.seq
                    AND e.t > a.t - {window_ms} AND e.t <= a.t)
            FROM a ORDER BY seq""",
        [str(path)],
    ).fetchall()
    for k, t, accepted, n in rows:
        answer = store.submit("e", [at(t, k)], "s")[0]
        assert answer.outcome == (ACCEPTED if accepted else LATE)
        truth = (answer.vector or [])[0]
        assert truth.status == UNAVAILABLE or truth.n == n
