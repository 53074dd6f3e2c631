"""A store's clock becomes the server's, or is set back: every value against the naive store, and nothing that
nobody can know is claimed.
"""

from __future__ import annotations

import random

import pytest
from reference.both import Both
from reference.naive import (
    ACCEPTED,
    BEYOND_DEDUPE,
    DUPLICATE,
    HOUR_MS,
    LATE,
    NOT_FOUND,
    PRESENT,
    WARMING,
    EventType,
    Row,
    Schema,
    View,
)
from reference.written import features

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
DAY_MS = 24 * HOUR_MS
WINDOWED = features("count", "60s 3600s") + features("sum", "3600s", value="x")
LIFETIME = features("count", "lifetime") + features("last", "lifetime", value="x")
NO_LOG = features("distinct", "3600s", value="user") + features("decayed_count", "60s")


def schema_of(*, ids: bool = False, stated: bool = True) -> Schema:
    fields = {"k": "key", "user": "key", "x": "number", "id": "key"}
    kind = EventType(fields, lateness_ms=HOUR_MS, id_field="id" if ids else None, from_beginning=stated)
    other = EventType({"k": "key"}, lateness_ms=HOUR_MS, from_beginning=stated)
    views = {
        "w": View("a", {"k": "k"}, WINDOWED),
        "l": View("a", {"k": "k"}, LIFETIME),
        "n": View("a", {"k": "k"}, NO_LOG),
        "s": View("a", {"k": "k"}, features("count", "60s 3600s"), sketch=(0.001, 0.01)),
        "o": View("b", {"k": "k"}, features("count", "3600s lifetime")),
    }
    names = [f"{name}.{feature.name}" for name, view in views.items() for feature in view.features]
    return Schema({"a": kind, "b": other}, views, {"all": names})


def row(time_ms: int, k: str = "p", user: str = "u", x: float = 1.0, id_: str = "1") -> Row:
    return Row(time_ms, {"k": k, "user": user, "x": x, "id": id_})


def outcomes(store: Both, event: str, rows: list[Row], now_ms: int) -> list[int]:
    answers, _ = store.submit(event, rows, "all", now_ms=now_ms)
    return [answer.outcome for answer in answers]


def statuses(store: Both, now_ms: int, key: str = "p") -> dict[str, tuple[int, float]]:
    _, vectors = store.read("all", {"k": key}, now_ms=now_ms)
    return {name: (got.status, got.value) for name, got in vectors.got(0)}


@pytest.mark.parametrize("clock", ["event", "merged"])
def test_history_goes_live(clock: str) -> None:
    """Now goes on without events, of every type, and what was seen stays so."""
    store = Both(schema_of(), clock=clock)
    store.submit("a", [row(START_MS + 1000 * i) for i in range(90)])
    store.submit("b", [Row(START_MS - 10 * MINUTE_MS, {"k": "p"})])
    live_ms = START_MS + 30 * MINUTE_MS
    store.follow_wall(live_ms)
    got = statuses(store, live_ms)
    assert got["w.count_60s"] == (NOT_FOUND, 0) and got["w.count_3600s"] == (PRESENT, 90)
    assert got["l.count_lifetime"] == (PRESENT, 90) and got["o.count_3600s"] == (PRESENT, 1)
    assert outcomes(store, "a", [row(live_ms), row(live_ms - 90 * MINUTE_MS)], live_ms) == [
        ACCEPTED,
        ACCEPTED,
    ]
    assert statuses(store, live_ms + DAY_MS)["w.count_3600s"] == (NOT_FOUND, 0), "time goes on without events"
    store.restart(threads=1)
    assert store.replayed([3], threads=1).state.digest() == store.engine.state.digest()


def test_a_live_store_that_was_history_answers_as_one_that_was_live_all_along() -> None:
    was, live = Both(schema_of(), clock="merged"), Both(schema_of(), clock="wall")
    for i in range(200):
        now_ms = START_MS + 700 * i
        for store in (was, live):
            outcomes(store, "ab"[i % 5 == 0], [row(now_ms, x=float(i))], now_ms)
    was.follow_wall(now_ms)
    for i in range(200, 400):
        now_ms = START_MS + 700 * i + 9_000
        time_ms = now_ms - 300 * (i % 7)
        for store in (was, live):
            outcomes(store, "ab"[i % 5 == 0], [row(time_ms, x=float(i))], now_ms)
        assert statuses(was, now_ms) == statuses(live, now_ms)


@pytest.mark.parametrize("ahead_ms", [11 * MINUTE_MS, 2 * HOUR_MS, 400 * DAY_MS])
def test_a_clock_that_is_set_back_claims_nothing_that_it_cannot_know(ahead_ms: int) -> None:
    store = Both(schema_of(ids=True), clock="wall")
    assert outcomes(store, "a", [row(START_MS, id_="before")], START_MS) == [ACCEPTED]
    wrong_ms = START_MS + MINUTE_MS + ahead_ms
    assert outcomes(store, "a", [row(wrong_ms, user="v", id_="wrong")], wrong_ms) == [ACCEPTED]
    right_ms = START_MS + 2 * MINUTE_MS
    store.set_back(right_ms)
    assert {status for status, _ in statuses(store, right_ms).values()} == {WARMING}, "never a silent zero"
    again = [row(START_MS, id_="before"), row(right_ms - 1, id_="late")]
    assert outcomes(store, "a", again, right_ms) == [BEYOND_DEDUPE] * 2, "never counted twice"
    assert outcomes(store, "b", [Row(right_ms, {"k": "p"})], right_ms) == [ACCEPTED], "has no ids"
    live_ms = right_ms + 20_000
    for expected in (ACCEPTED, DUPLICATE):
        assert outcomes(store, "a", [row(live_ms, id_="after")], live_ms) == [expected]
    got = statuses(store, live_ms + 2 * HOUR_MS - 1)
    assert {status for name, (status, _) in got.items() if "lifetime" not in name} <= {PRESENT, NOT_FOUND}
    assert {status for name, (status, _) in got.items() if "lifetime" in name} == {WARMING}, "for good"
    assert statuses(store, live_ms + 50_000)["s.count_60s"] == (PRESENT, 1), "sketches begin anew"
    store.restart(threads=3)
    assert store.replayed([2], threads=1).state.digest() == store.engine.state.digest()


def test_what_had_expired_by_the_wrong_clock_stays_so_whether_it_was_freed_or_not() -> None:
    swept, kept = Both(schema_of(), clock="wall"), Both(schema_of(), clock="wall")
    for store in (swept, kept):
        outcomes(store, "a", [row(START_MS, k="p"), row(START_MS, k="q")], START_MS)
        wrong_ms = START_MS + 2 * HOUR_MS + 30 * MINUTE_MS  # an hour and its lateness, and half an hour
        outcomes(store, "a", [row(wrong_ms, k="q"), row(wrong_ms - HOUR_MS, k="q")], wrong_ms)
    swept.engine.state.sweep()
    for store in (swept, kept):
        store.set_back(START_MS + HOUR_MS)
        store.restart(threads=1)
        late = [row(START_MS + 29 * MINUTE_MS), row(START_MS + 31 * MINUTE_MS)]
        assert outcomes(store, "a", late, START_MS + HOUR_MS) == [ACCEPTED, ACCEPTED], "lifetimes take both"
        assert statuses(store, START_MS + HOUR_MS)["w.count_3600s"] == (WARMING, 1)
    assert swept.engine.state.digest() == kept.engine.state.digest()


def test_producers_are_forgotten_again_after_their_silence() -> None:
    store = Both(schema_of(), clock="wall")
    store.submit("a", [row(START_MS)], now_ms=START_MS, producer=b"early", epoch=1, sequence=1)
    wrong_ms = START_MS + 400 * DAY_MS
    store.submit("a", [row(wrong_ms)], now_ms=wrong_ms, producer=b"p", epoch=1, sequence=1)
    right_ms = START_MS + HOUR_MS
    store.set_back(right_ms)
    (found, _) = store.engine.state.list_producers(0, at_least=10, now_ms=right_ms)
    assert [(each.name, each.heard_ms) for each in found] == [(b"p", right_ms)]
    store.submit("a", [row(right_ms)], now_ms=right_ms, producer=b"p", epoch=1, sequence=1)
    (found, _) = store.engine.state.list_producers(0, at_least=10, now_ms=right_ms + 8 * DAY_MS)
    assert found == []


@pytest.mark.parametrize("seed", range(40))
def test_any_steps_with_clocks_that_change_agree_with_the_naive_store(seed: int) -> None:
    draw = random.Random(seed)
    clock = draw.choice(["event", "merged", "wall"])
    store = Both(schema_of(ids=seed % 2 > 0, stated=seed % 3 > 0), clock=clock)
    now_ms = START_MS
    for i in range(draw.randint(30, 80)):
        now_ms += draw.choice([0, 1, 900, 20_000, 40 * MINUTE_MS])
        step = draw.random()
        if step < 0.07 and store.naive.clock != "wall" and store.naive.first_now:
            store.follow_wall(now_ms)
        elif step < 0.12 and store.naive.clock == "wall" and store.naive.wall_now is not None:
            back_ms = draw.choice([2 * MINUTE_MS, 50 * MINUTE_MS, 119 * MINUTE_MS, 3 * HOUR_MS, 500 * DAY_MS])
            now_ms = store.naive.wall_now - back_ms
            store.set_back(now_ms)
        elif step < 0.17:
            store.engine.state.sweep()
        elif step < 0.22:
            store.restart(threads=draw.choice([1, 3]))
        elif step < 0.75:
            event = draw.choice("aab")
            shifts = [0, 0, 5_000, 10_001, -MINUTE_MS, -HOUR_MS, -2 * HOUR_MS, -3 * HOUR_MS]
            rows = [
                row(now_ms + draw.choice(shifts), draw.choice("pq"), draw.choice("uvw"), id_=str(i // 2))
                for _ in range(draw.randint(1, 4))
            ]
            outcomes(store, event, rows, now_ms)
        else:
            as_of = draw.choice([None, now_ms, now_ms - 30_000, now_ms + 10_000, now_ms - HOUR_MS])
            store.read("all", {"k": draw.choice("pqr")}, as_of=as_of, now_ms=now_ms)
    digest = store.engine.state.digest()
    store.restart(threads=1)
    assert store.replayed([1, 4], threads=2).state.digest() == digest


def test_a_late_event_after_it_is_late() -> None:
    """The floor is where the wrong clock's horizon was."""
    schema = schema_of()
    store = Both(Schema(schema.events, {"w": schema.views["w"]}, {"all": ["w.count_3600s"]}), clock="wall")
    outcomes(store, "a", [row(START_MS)], START_MS)
    outcomes(store, "a", [row(START_MS + 150 * MINUTE_MS)], START_MS + 150 * MINUTE_MS)
    store.set_back(START_MS + HOUR_MS)
    late = [row(START_MS + 30 * MINUTE_MS - 1), row(START_MS + 30 * MINUTE_MS)]
    assert outcomes(store, "a", late, START_MS + HOUR_MS) == [LATE, ACCEPTED]
