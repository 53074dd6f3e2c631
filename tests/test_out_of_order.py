"""Distinct values and decayed sums before the key's newest event: what is certain of them, and what may be.

The naive store knows every event; each value of each read is held against it (reference.both).
"""

from __future__ import annotations

import math
import random

import pytest
from reference.both import Both
from reference.compare import Got
from reference.naive import HOUR_MS, NOT_FOUND, PRESENT, UNAVAILABLE, EventType, Row, Schema, View
from reference.written import Filter, features

START_MS = 1_700_000_000_000
KIND = EventType({"k": "key", "user": "key", "x": "number"}, lateness_ms=HOUR_MS, from_beginning=True)
UP = Filter("x > 0", lambda f: None if f["x"] is None else f["x"] > 0)  # type: ignore[operator]
NAMED = Filter("user is not null", lambda f: f["user"] is not None)
NO_BOT = Filter("user != 'bot' or x > 0 and user in ('a', 'b')", lambda f: f["user"] and f["user"] != "bot")
COUNTED = (
    features("count", "60s 3600s")
    + features("count", "60s 3600s", where=NAMED, name="named")
    + features("count", "60s 3600s", where=UP, name="ups")
    + features("distinct", "60s 3600s", value="user")
    + features("distinct", "60s 3600s", value="user", where=NAMED, name="users_named")
    + features("distinct", "60s 3600s", value="user", where=UP, name="users_up")
)
FEATURES = (
    features("distinct", "60s 3600s", value="user")
    + features("distinct", "3600s", value="user", where=UP, name="ups")
    + features("decayed_count", "60s")
    + features("decayed_sum", "60s", value="x")
    + features("decayed_mean", "60s", value="x")
)
NAMES = [f"v.{feature.name}" for feature in FEATURES]


def store_of(clock: str = "event", lateness_ms: int = HOUR_MS) -> Both:
    kind = EventType(KIND.fields, lateness_ms=lateness_ms, from_beginning=True)
    schema = Schema({"e": kind}, {"v": View("e", {"k": "k"}, FEATURES)}, {"s": NAMES})
    return Both(schema, clock=clock)


def store_counting(where: Filter | None = None, exact_events: int = 256) -> Both:
    view = View("e", {"k": "k"}, COUNTED, where=where, exact_events=exact_events)
    return Both(Schema({"e": KIND}, {"v": view}, {"s": [f"v.{f.name}" for f in COUNTED]}))


def row(time_ms: int, user: str | None = "u", x: float | None = 1.0) -> Row:
    return Row(time_ms, {"k": "a", "user": user, "x": x})


def observed(store: Both, sent: Row) -> dict[str, Got]:
    _, vectors = store.submit("e", [sent], "s")
    assert vectors is not None
    return {name.removeprefix("v."): got for name, got in vectors.got(0)}


def read(store: Both, as_of: int, **now: int) -> dict[str, Got]:
    _, vectors = store.read("s", {"k": "a"}, as_of=as_of, **now)
    return {name.removeprefix("v."): got for name, got in vectors.got(0)}


def test_an_event_two_seconds_late_reads_nearly_all_users_and_surely_its_own() -> None:
    store = store_of()
    store.submit("e", [row(START_MS + 60_000 * i + j, f"u{j}") for i in range(30) for j in range(10)])
    late = START_MS + 60_000 * 29 - 2_000
    got = observed(store, row(late, "u3"))["distinct_user_3600s"]
    assert (got.status, got.lower, got.upper) == (PRESENT, 1, 10)
    assert got.value > 9.9
    got = observed(store, row(late, "new"))["distinct_user_3600s"]
    assert (got.lower, got.upper) == (1, 11)
    got = read(store, late)["distinct_user_3600s"]
    assert (got.lower, got.upper) == (1, 11), "who was last seen then was seen then"


def test_a_keys_only_user_is_one() -> None:
    store = store_of()
    observed(store, row(START_MS))
    got = observed(store, row(START_MS - 1))
    for name in ("distinct_user_60s", "distinct_user_3600s", "ups_3600s"):
        assert (got[name].lower, got[name].value, got[name].upper) == (1, 1, 1)
    again = observed(store, row(START_MS - 2, x=-1.0))
    assert (again["ups_3600s"].lower, again["ups_3600s"].upper) == (0, 1), "it is none of those that are up"


def test_a_peek_counts_its_own_event_as_observe_does() -> None:
    store = store_of()
    observed(store, row(START_MS))
    peeked = store.peek("e", row(START_MS - 1), "s")
    got = observed(store, row(START_MS - 1))
    assert dict(peeked.got(0)) == {f"v.{name}": each for name, each in got.items()}


def test_where_an_event_is_counted_there_is_a_value_unless_it_may_have_none() -> None:
    store = store_counting()
    store.submit("e", [row(START_MS, "a"), row(START_MS + 60_000, "a")])
    got = read(store, START_MS)
    assert (got["count_60s"].value, got["users_named_60s"].value) == (1, 1)
    assert (got["users_named_60s"].lower, got["users_named_60s"].upper) == (1, 1)
    plain = got["distinct_user_60s"]
    assert (plain.lower, plain.value, plain.upper) == (0, 1, 1), "for all it knows, that event was without"
    got = read(store, START_MS - 1)
    assert {each.value for each in got.values()} == {0}
    assert {each.upper for each in got.values()} == {0}, "no event, no value"


def test_there_are_no_more_values_than_events() -> None:
    store = store_counting()
    store.submit("e", [row(START_MS, "u0"), *(row(START_MS + 60_000, f"u{j}") for j in range(10))])
    got = read(store, START_MS)["distinct_user_3600s"]
    assert (got.value, got.upper) == (1, 1), "it was 10 at most"


@pytest.mark.parametrize(("exact_events", "where"), [(256, None), (256, NO_BOT), (8, None), (8, NO_BOT)])
@pytest.mark.parametrize("seed", range(5))
def test_values_agree_with_counts_at_any_time(seed: int, exact_events: int, where: Filter | None) -> None:
    random_ = random.Random(seed)
    store = store_counting(where, exact_events)
    times = []
    for _ in range(40):
        times += [START_MS + random_.randint(0, 4_000_000) for _ in range(3)]
        users = random_.choice([["a"], ["a", "b", None], [str(i) for i in range(600)]])
        store.submit(
            "e", [row(t, random_.choice(users), random_.choice([1.0, -1.0, None])) for t in times[-3:]]
        )
        for _ in range(3):
            got = read(store, random_.choice(times) + random_.choice([0, 0, 1, 30_000]))
            for counts, values in (("count", "distinct_user"), ("named", "users_named"), ("ups", "users_up")):
                for window in ("60s", "3600s"):
                    count, value = got[f"{counts}_{window}"], got[f"{values}_{window}"]
                    if math.isnan(value.value):
                        continue
                    assert value.upper <= max(count.upper, value.lower)
                    assert value.value >= 1 or value.upper < 1 or count.lower < 1


def test_decayed_sums_of_before_are_at_most_what_is_left_of_everything() -> None:
    store = store_of()
    store.submit("e", [row(START_MS + 1_000 * i, x=float(i % 3)) for i in range(300)])
    newest = START_MS + 299_000
    got = observed(store, row(newest - 1, x=2.0))
    count, total, mean = got["decayed_count_60s"], got["decayed_sum_x_60s"], got["decayed_mean_x_60s"]
    truth = sum(0.5 ** ((299_000 - 1 - 1_000 * i) / 60_000) for i in range(299)) + 1
    assert (count.status, count.lower) == (PRESENT, 1)
    assert count.lower < truth <= count.upper < truth + 0.001, "all but the newest event"
    assert abs(count.value - truth) < 2
    assert (total.status, total.lower, mean.status) == (PRESENT, 2, PRESENT)
    assert mean.lower < 1 < mean.upper and abs(mean.value - 1) < 0.1
    got = read(store, newest - 1)
    assert got["decayed_count_60s"].lower == 0 and got["decayed_mean_x_60s"].status == UNAVAILABLE
    got = read(store, START_MS - 1)
    assert (got["decayed_count_60s"].lower, got["decayed_count_60s"].upper > 0) == (0, True)
    store = store_of()
    observed(store, row(START_MS))
    assert {each.status for each in read(store, START_MS - 1).values() if each.upper == 0} == {NOT_FOUND}


@pytest.mark.parametrize("gap_s", [100, 500, 890, 1_000, 1_060, 1_080, 2_000, 3_600])
def test_what_left_no_trace_in_a_later_sum_is_not_nothing(gap_s: int) -> None:
    """2^-1075 is 0: an event of a thousand half-lives before is in no sum of doubles."""
    declared = tuple(
        f for name in ("count", "sum", "mean")
        for f in features(f"decayed_{name}", "1s", value=None if name == "count" else "x")
    )  # fmt: skip
    schema = Schema(
        {"e": KIND}, {"v": View("e", {"k": "k"}, declared)}, {"s": [f"v.{f.name}" for f in declared]}
    )
    store, later = Both(schema), START_MS + 1_000 * gap_s
    store.submit("e", [row(START_MS), row(later, x=3.0)])
    for as_of in (START_MS, START_MS + 10, later - 100_000, later - 10):
        read(store, as_of)
    store = Both(schema)
    store.submit("e", [row(later)])
    got = observed(store, row(START_MS, x=5.0))
    assert {each.status for each in got.values()} <= {PRESENT, UNAVAILABLE}
    deep = [row(START_MS, x=1e-6), row(START_MS + 1_020_000, x=0.0), row(START_MS + 1_022_500, x=0.0)]
    for rows in (deep, deep[::-1]):
        store = Both(schema)
        for one in rows:
            store.submit("e", [one], "s")


def test_sums_of_the_least_numbers_have_bounds_that_hold() -> None:
    for gap_ms in (50, 80):
        store = store_of()
        store.submit("e", [row(START_MS, x=1e-300), row(START_MS + 60_000 * gap_ms, x=0.0)])
        read(store, START_MS)
        read(store, START_MS + 30_000)


def test_what_has_faded_is_nothing_then_too() -> None:
    store = store_of(clock="wall")
    store.submit("e", [row(START_MS)], now_ms=START_MS)
    now = START_MS + 64 * 60_000 + HOUR_MS + 1
    got = read(store, now, now_ms=now)
    assert got["decayed_count_60s"].status == NOT_FOUND
    assert math.isnan(got["decayed_mean_x_60s"].value)


@pytest.mark.parametrize("clock", ["event", "wall"])
@pytest.mark.parametrize("seed", range(10))
def test_any_history_read_at_any_time(clock: str, seed: int) -> None:
    random_ = random.Random(seed)
    store = store_of(clock, lateness_ms=random_.choice([0, 5_000, HOUR_MS]))
    now, times = START_MS, [START_MS]
    for _ in range(60):
        now += random_.choice([0, 1, 100, 1_000, 20_000])
        rows = [
            row(
                now - random_.choice([0, 0, 1, 50, 900, 4_000, 30_000])
                + (random_.choice([0, 0, 3, 4_000]) if clock == "wall" else 0),
                random_.choice([None, "a", "b", "c", str(random_.randint(0, 40))]),
                random_.choice([None, 0.1, -3.0, 2.5, 1e6]),
            )
            for _ in range(random_.randint(1, 4))
        ]  # fmt: skip
        options = {"now_ms": now} if clock == "wall" else {}
        store.submit("e", rows, random_.choice([None, "s", "s"]), **options)
        times += [one.time for one in rows if one.time is not None]
        for _ in range(4):
            read(store, random_.choice(times[-12:]) + random_.choice([-1, 0, 0, 1, 70]), **options)
