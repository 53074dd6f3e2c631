"""At the memory limit keys are shed, not events: what is known goes on, what was lost is never certain."""

from __future__ import annotations

import random

import pytest
from reference.both import Both
from reference.engine import Engine
from reference.naive import (
    HOUR_MS,
    MAX_HOLES,
    NOT_FOUND,
    PRESENT,
    WARMING,
    EventType,
    Row,
    Schema,
    View,
)
from reference.written import features, yaml

T0 = 1_700_000_000_000
FULL = 300  # bytes: less than one row and its index take
KIND = EventType({"ip": "key", "acct": "key", "x": "number"}, lateness_ms=HOUR_MS, from_beginning=True)
COUNTS = features("count", "60s 3600s lifetime")
PLAY = {
    "by_ip": View("play", {"ip": "ip"}, COUNTS + features("sum", "3600s lifetime", value="x")),
    "by_acct": View("play", {"acct": "acct"}, COUNTS),
}


def schema_of(views: dict[str, View], **events: EventType) -> Schema:
    names = [f"{name}.{feature.name}" for name, view in views.items() for feature in view.features]
    return Schema(events or {"play": KIND}, views, {"s": names})


def play(time_ms: int, ip: str = "i", acct: str = "a", x: float = 1.0) -> Row:
    return Row(time_ms, {"ip": ip, "acct": acct, "x": x})


def store_of(views: dict[str, View] = PLAY, clock: str = "event", **events: EventType) -> Both:
    return Both(schema_of(views, **events), clock=clock, n_shards=1)


def got(store: Both, feature: str, as_of: int | None = None, **parts: str) -> tuple[int, float, float]:
    """Status, value, coverage."""
    keys = {part: "none" for view in store.naive.schema.views.values() for part in view.key}
    _, vectors = store.read("s", keys | parts, as_of=as_of)
    value = dict(vectors.got(0))[feature]
    return value.status, value.value, round(value.coverage, 6)


def test_a_key_that_found_no_room_three_times_is_no_certain_zero() -> None:
    store = store_of()
    store.submit("play", [play(T0, "old")])
    store.engine.limit(FULL)
    for i in range(3):
        answers, _ = store.submit("play", [play(T0 + 1000 + i, "new")], "s")
        assert [answer.outcome for answer in answers] == [0], "the account's row takes it"
    assert store.engine.shed == [{("ip",)}]
    assert got(store, "by_ip.count_60s", ip="new") == (WARMING, 0, round(1 - 3 / 60_000, 6))
    assert got(store, "by_ip.count_lifetime", ip="new") == (WARMING, 0, 0)
    assert got(store, "by_acct.count_60s", acct="a") == (PRESENT, 4, 1)


def test_what_is_known_goes_on_and_is_certain() -> None:
    store = store_of()
    store.submit("play", [play(T0, "old")])
    store.engine.limit(FULL)
    store.submit("play", [play(T0 + 1000, f"new{i}") for i in range(100)])
    store.submit("play", [play(T0 + 2000, "old", f"acct{i}") for i in range(100)])
    assert got(store, "by_ip.count_60s", ip="old") == (PRESENT, 101, 1)
    assert got(store, "by_ip.count_lifetime", ip="old") == (PRESENT, 101, 1)
    assert store.engine.state.shed == {"acct": 0, "ip": 0}, "counted by the store, not by a state"


def test_a_row_made_after_a_hole_is_not_sure_of_it_and_sure_of_what_follows() -> None:
    store = store_of()
    store.submit("play", [play(T0, "old")])
    store.engine.limit(FULL)
    store.submit("play", [play(T0 + 1000, "new"), play(T0 + 3000, "new")])
    store.engine.limit(0)
    store.submit("play", [play(T0 + 4000, "new")], "s")
    assert got(store, "by_ip.count_60s", ip="new") == (WARMING, 1, round(1 - 2 / 60_000, 6))
    assert got(store, "by_ip.count_60s", T0 + 63_000, ip="new")[0] == WARMING, "ahead of the clock"
    store.submit("play", [play(T0 + 63_001, "new")])
    assert got(store, "by_ip.count_60s", ip="new") == (PRESENT, 2, 1)
    assert got(store, "by_ip.count_3600s", ip="new")[0] == WARMING
    assert got(store, "by_ip.count_lifetime", ip="new") == (WARMING, 2, 0)
    assert got(store, "by_ip.count_60s", ip="other") == (NOT_FOUND, 0, 1), "what was shed is out of its reach"
    store.submit("play", [play(T0 + 64_000, "other")])
    assert got(store, "by_ip.count_lifetime", ip="other") == (WARMING, 1, 0), "it may have been shed"


def test_a_ninth_hole_joins_the_two_that_are_nearest() -> None:
    store = store_of()
    store.submit("play", [play(T0, "old")])
    store.engine.limit(FULL)
    times = [T0 + 1_000 * i + (900 if i == 4 else 0) for i in range(1, MAX_HOLES + 2)]  # 4.9 s and 5 s
    store.submit("play", [play(time, "new") for time in times])
    lost = MAX_HOLES - 1 + 101
    assert got(store, "by_ip.count_60s", ip="new") == (WARMING, 0, round(1 - lost / 60_000, 6))


def test_holes_that_nothing_reaches_back_to_are_forgotten() -> None:
    """Of views that have no lifetimes; those keep theirs for as long as a lifetime may idle."""
    views = {"by_ip": View("play", {"ip": "ip"}, features("count", "60s"))}
    store = store_of(views)
    store.submit("play", [play(T0, "old")])
    store.engine.limit(FULL)
    store.submit("play", [play(T0 + 1000, "new")])
    before = store.engine.state.snapshot()
    store.engine.limit(0)
    store.submit("play", [play(T0 + 3 * HOUR_MS, "later")])
    store.engine.state.sweep()
    assert len(store.engine.state.snapshot()) < len(before), "the first row after it takes it out"
    assert got(store, "by_ip.count_60s", ip="later") == (PRESENT, 1, 1)


@pytest.mark.parametrize("sweeps", [False, True])
def test_a_row_that_has_expired_is_as_one_that_was_freed(sweeps: bool) -> None:
    """Whether the sweep came to it is nowhere in the journal, and must be nowhere in an answer."""
    schema = schema_of({"by_ip": View("play", {"ip": "ip"}, features("count", "60s"))})
    first = [play(T0, "old"), play(T0, "back")]
    probe = Both(schema, n_shards=1)
    probe.submit("play", first)
    cap = probe.engine.state.stats()["used_bytes"]
    options = {"n_shards": 1, "from_beginning": True, "max_memory_bytes": cap}
    store = Both(schema, n_shards=1, engine=Engine(yaml(schema), **options))
    store.submit("play", first)
    later = T0 + 3 * HOUR_MS
    store.submit("play", [play(later, "old"), play(later + 1, "new")])
    assert store.engine.shed == [set(), {("ip",)}]
    if sweeps:
        assert store.engine.state.sweep() == 1
    assert got(store, "by_ip.count_60s", ip="back")[:2] == (WARMING, 0)
    store.peek("play", play(later + 2, "back"), "s")
    store.submit("play", [play(later + 2, "back")], "s")
    assert got(store, "by_ip.count_60s", ip="back")[:2] == (WARMING, 1)
    last = later + 3 * HOUR_MS
    store.submit("play", [play(last, "old")])
    if sweeps:
        assert store.engine.state.sweep() == 1, "and again of one that knows that it came later"
    store.submit("play", [play(last + 1, "back")], "s")
    assert got(store, "by_ip.count_60s", ip="back") == (PRESENT, 1, 1)


def test_a_peek_says_what_would_be_shed_and_reads_as_if_it_had_been() -> None:
    store = store_of()
    store.submit("play", [play(T0, "old")])
    store.engine.limit(FULL)
    row = play(T0 + 1000, "new")
    peeked = store.peek("play", row, "s")
    assert store.engine.shed == [{("ip",)}]
    _, observed = store.submit("play", [row], "s")
    assert observed is not None
    assert peeked.bits() == observed.bits()


VIEWS = {
    "a": View("play", {"ip": "ip"}, features("count", "60s 3600s") + features("sum", "60s", value="x")),
    "b": View("play", {"ip": "ip"}, features("count", "lifetime"), lifetime_idle_ms=2 * HOUR_MS),
    "c": View("like", {"ip": "ip"}, features("count", "600s lifetime")),
    "d": View("play", {"acct": "acct"}, features("distinct", "600s", value="ip")),
    "f": View("play", {"ip": "ip"}, features("decayed_sum", "30s", value="x")),
    "e": View("play", {"ip": "ip", "acct": "acct"}, features("count", "60s"), offset_ms=5_000),
}


@pytest.mark.parametrize("clock", ["event", "merged", "wall"])
@pytest.mark.parametrize("seed", range(4))
def test_random_histories_with_and_without_room(seed: int, clock: str) -> None:
    """Against the naive store, which is told what was shed; and against one that never sheds: what is certain
    is what that one says."""
    rng = random.Random(seed)
    kinds = {
        "play": EventType(
            {"ip": "key", "acct": "key", "x": "number"}, lateness_ms=60_000, from_beginning=True
        ),
        "like": EventType({"ip": "key"}, lateness_ms=10_000, from_beginning=True),
    }
    store = store_of(VIEWS, clock, **kinds)
    unlimited = store_of(VIEWS, clock, **kinds)
    now = T0
    n_certain = n_shed = 0
    for _ in range(80):
        now += rng.choice([1, 200, 5_000, 100_000, 1_000_000])
        wall = {"now_ms": now} if clock == "wall" else {}
        if rng.random() < 0.3:
            store.engine.limit(rng.choice([0, FULL, FULL]))
        if rng.random() < 0.2:
            store.engine.state.sweep()
        if rng.random() < 0.1:
            store.restart(threads=1)
        event = rng.choice(["play", "play", "like"])
        rows = [
            Row(
                now - rng.choice([0, 0, 7, 3_000, 50_000, 80_000]),
                {"ip": f"i{rng.randrange(6)}", "acct": f"a{rng.randrange(4)}", "x": rng.randrange(5)},
            )
            for _ in range(rng.randrange(1, 6))
        ]
        store.submit(event, rows, rng.choice([None, "s"]), **wall)
        unlimited.submit(event, rows, **wall)
        n_shed += sum(map(bool, store.engine.shed))
        parts = {"ip": f"i{rng.randrange(6)}", "acct": f"a{rng.randrange(4)}"}
        as_of = rng.choice([None, now, now - 1_000])
        _, limited = store.read("s", parts, as_of=as_of, **wall)
        _, whole = unlimited.read("s", parts, as_of=as_of, **wall)
        for (name, some), (_, every) in zip(limited.got(0), whole.got(0), strict=True):
            if some.status in (PRESENT, NOT_FOUND):
                n_certain += 1
                assert some.lower <= every.upper, name
                assert every.lower <= some.upper, name
    assert n_shed > 10
    assert n_certain > 50
