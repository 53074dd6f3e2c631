"""Engine and naive store take the same random steps and must agree on everything readable after each of them.

A few colliding keys, a manual clock, small logs that merge early. The steps are those of a store's life:
batches cut anywhere, single events observed and peeked at, late, duplicate and malformed ones, retried
sequences, idle jumps, clocks that turn back, schema changes, forgotten keys, restarts. At the end the same
steps with other batch boundaries, thread counts and numbers of shards must answer the same, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from fuzz.rounds import scaled
from hypothesis import Phase, event, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference.both import Both
from reference.engine import Engine
from reference.naive import Derived, EventType, Row, Schema, View
from reference.written import Filter, Formula, features

START_MS = 3_500_000  # soon there is another hour of day
KEYS = ("a", "b", 7, "7", 7.0)
POSITIVE = Filter("x > 0", lambda f: None if f["x"] is None else f["x"] > 0)  # type: ignore[operator]
LOUD = Filter(
    "s in ('u', 'v') and not (x < 0)", lambda f: _and(_in(f["s"], ("u", "v")), _not(_less(f["x"], 0)))
)
NAMED = Filter("s is not null or y > 5", lambda f: _or(f["s"] is not None, _less(5, f["y"])))


def _less(a: Any, b: Any) -> bool | None:
    return None if a is None or b is None else a < b


def _in(a: Any, texts: tuple[str, ...]) -> bool | None:
    return None if a is None else a in texts


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _or(a: bool | None, b: bool | None) -> bool | None:
    return _not(_and(_not(a), _not(b)))


def every_view(exact_events: int, max_error: float, max_entries: int) -> dict[str, View]:
    """All views that a schema of this machine may have, by name."""
    limits: dict[str, Any] = {
        "exact_events": exact_events,
        "max_error": max_error,
        "max_entries": max(max_entries, exact_events),
        "lifetime_idle_ms": 90_000,
    }
    plain = (
        features("count", "5s 20s lifetime")
        + features("sum", "20s lifetime", value="x")
        + features("sum", "20s", value="y")
        + features("mean", "20s lifetime", value="x")
        + features("min", "20s lifetime", value="x")
        + features("max", "20s", value="x")
        + features("stddev", "20s lifetime", value="x")
        + features("first", "20s lifetime", value="x")
        + features("last", "20s lifetime", value="x")
        + features("since_first", "20s lifetime")
        + features("since_last", "20s lifetime")
    )
    return {
        "plain": View("a", {"k": "k"}, plain, **limits),
        "late": View(
            "a",
            {"k": "k"},
            features("count", "5s 30s")
            + features("sum", "30s", value="y")
            + features("last", "30s", value="x")
            + features("since_last", "30s", exclude_self=False),
            offset_ms=10_000,
            **limits,
        ),
        "some": View(
            "a",
            {"k": "k", "q": "q"},
            features("count", "20s")
            + features("count", "20s", name="up", where=POSITIVE, exclude_self=True)
            + features("sum", "5s 20s", value="y", name="up_y", where=POSITIVE)
            + features("since_last", "20s", name="ago", where=POSITIVE),
            where=NAMED,
            **limits,
        ),
        "loud": View("a", {"k": "k"}, features("count", "5s 20s"), where=LOUD, **limits),
        "all": View("a", {}, features("count", "20s lifetime") + features("mean", "5s", value="y"), **limits),
        "various": View(
            "a",
            {"k": "k"},
            features("distinct", "5s 20s", value="q")
            + features("distinct", "20s", value="s", name="loud_s", where=LOUD)
            + features("distinct", "20s", value="x", exclude_self=True)
            + features("count", "20s"),
            where=NAMED,
            **limits,
        ),
        "heavy": View(
            "a",
            {"k": "k"},
            features("top", "5s 20s", value="s", k=2)
            + features("top", "20s", value="y", k=5)
            + features("top", "5s 20s", value="x", name="loud_x", where=LOUD, exclude_self=True, k=8)
            + features("hour_entropy", "20s")
            + features("count", "20s"),
            **limits,
            top_counters=8,
            top_error=max_error,
        ),
        "fading": View(
            "a",
            {"k": "k"},
            features("decayed_count", "1s 30s")
            + features("decayed_sum", "2s", value="x", name="up_x", where=POSITIVE)
            + features("decayed_mean", "5s", value="y")
            + features("decayed_sum", "5s", value="x", exclude_self=True)
            + features("count", "5s"),
            **limits,
        ),
        "regular": View(
            "a",
            {"k": "k"},
            features("interval_mean", "5s 20s")
            + features("interval_cv", "5s 20s")
            + features("interval_mean", "20s", name="up_gap", where=POSITIVE)
            + features("interval_cv", "5s 20s", name="up_cv", where=POSITIVE),
            **limits,
        ),
        "pairs": View(
            "a",
            {"k": "k", "q": "q"},
            features("count", "5s 20s")
            + features("sum", "20s", value="x")
            + features("count", "5s 20s", name="up", where=POSITIVE),
            where=NAMED,
            sketch=(0.05, 0.01),
        ),
        "places": View("a", {"q": "q"}, features("count", "20s"), sketch=(0.05, 0.01)),
        "other": View(
            "b",
            {"k": "k"},
            features("count", "5s 40s") + features("max", "40s lifetime", value="z"),
            **limits,
        ),
    }


# By full name. Those whose operands the schema of the moment has are in it.
DERIVED = {
    "plain.burst": Derived(
        ("plain.count_5s", "plain.count_20s"),
        Formula("plain.count_5s / plain.count_20s", lambda a, b: a / b),
    ),
    "plain.burst_or_half": Derived(
        ("plain.count_5s", "plain.count_20s"),
        Formula("plain.count_5s / plain.count_20s", lambda a, b: a / b),
        by_zero=0.5,
    ),
    "plain.range": Derived(
        ("plain.max_x_20s", "plain.min_x_20s"),
        Formula("plain.max_x_20s - plain.min_x_20s", lambda a, b: a - b),
    ),
    "mixed.evenness": Derived(
        ("plain.stddev_x_20s", "plain.range"),
        Formula("plain.stddev_x_20s / plain.range", lambda a, b: a / b),
    ),
    "mixed.across": Derived(
        ("plain.sum_x_20s", "plain.mean_x_20s", "other.count_5s"),
        Formula("-(plain.sum_x_20s - plain.mean_x_20s) / other.count_5s", lambda a, b, c: -(a - b) / c),
        by_zero=-1.0,
    ),
    "mixed.ahead": Derived(
        ("some.up_20s", "late.count_5s", "some.up_y_20s"),
        Formula(
            "max(some.up_20s, late.count_5s, 1) / (some.up_y_20s * -2)",
            lambda a, b, c: max(a, b, 1) / (c * -2),
        ),
    ),
    "mixed.quiet": Derived(
        ("plain.count_20s", "loud.count_20s"),
        Formula("1 / (plain.count_20s - loud.count_20s)", lambda a, b: 1 / (a - b)),
    ),
    "mixed.both": Derived(
        ("mixed.quiet", "plain.burst_or_half", "plain.since_last_20s"),
        Formula(
            "min(mixed.quiet, plain.burst_or_half) + plain.since_last_20s / 1000",
            lambda a, b, c: min(a, b) + c / 1000,
        ),
    ),
}


def schema_of(views: dict[str, View], *, ids: bool, stated: bool) -> Schema:
    fields = {"k": "key", "q": "key", "x": "number", "y": "number", "s": "string"}
    kinds = {
        "a": EventType(
            fields | ({"id": "string"} if ids else {}),
            10_000,
            "id" if ids else None,
            15_000 if ids else 0,
            from_beginning=stated,
        ),
        "b": EventType({"k": "key", "z": "number"}, 3_000, from_beginning=stated),
    }
    everything = [f"{name}.{feature.name}" for name, view in views.items() for feature in view.features]
    derived: dict[str, Derived] = {}
    for name, each in DERIVED.items():
        if set(everything) >= set(each.operands):
            derived[name] = each
            everything.insert(len(everything) // 2, name)
    services = {"everything": everything} | ({"derived": list(derived)} if derived else {})
    sketched = {name for name, view in views.items() if view.sketch is not None}
    services["rows"] = [name for name in everything if name.partition(".")[0] not in sketched]
    return Schema(kinds, views, services, derived=derived)


numbers = st.one_of(
    st.none(), st.integers(-5, 9), st.sampled_from([0.0, -0.0, 0.5, 1e-9, -1e12, 1e12]), st.booleans()
)
positives = st.one_of(st.none(), st.integers(0, 9), st.sampled_from([0.25, 1e6]))
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), st.sampled_from([None, ""]))
# How far an event's time is from the clock: mostly near and behind, now and then late or far too late.
shifts = st.one_of(
    st.integers(-2, 2),
    st.integers(-6_000, 500),
    st.sampled_from([-5_000, -5_001, -20_000, -29_999, -30_000, -30_001, -50_000, -50_001, 10_000]),
    st.integers(-70_000, 3_000),
)
malformed = st.sampled_from(
    [
        {"x": float("nan")},
        {"x": float("inf")},
        {"k": 1.5},
        {"k": "é" * 2049},
        {"x": "1"},
        {"ts": None},
        {"ts": 1 << 60},
    ]
)


class TwoStores(RuleBasedStateMachine):
    @initialize(
        clock=st.sampled_from(["event", "merged", "wall"]),
        limits=st.tuples(
            st.sampled_from([1, 4, 32]), st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([16, 64, 4096])
        ),
        ids=st.booleans(),
        stated=st.booleans(),
        hidden=st.sets(st.sampled_from(["late", "some", "loud", "all", "pairs", "other"]), max_size=2),
        server_ahead_ms=st.sampled_from([None, -9_000, 0, 3_600_000]),
    )
    def open(
        self,
        *,
        clock: str,
        limits: tuple[int, float, int],
        ids: bool,
        stated: bool,
        hidden: set[str],
        server_ahead_ms: int | None,
    ) -> None:
        self.clock_ms = START_MS
        self.server_ahead_ms = server_ahead_ms  # of a store whose clock is another; None: it is not known
        self.ids, self.stated = ids, stated
        self.next_id = self.next_sequence = 0
        self.sent: list[tuple[list[Row], dict[str, Any]]] = []
        self.views = every_view(*limits)
        self.shown = {name: view for name, view in self.views.items() if name not in hidden}
        self.both = self.stores(schema_of(self.shown, ids=ids, stated=stated), clock)

    def stores(self, schema: Schema, clock: str) -> Both:
        return Both(schema, clock=clock)

    # Time

    @rule(
        step_ms=st.one_of(
            st.integers(0, 3_000), st.sampled_from([5_000, 20_000, 30_001, 60_000, 90_001, 200_000])
        )
    )
    def wait(self, step_ms: int) -> None:
        self.clock_ms += step_ms

    def now(self) -> dict[str, int]:
        """When something is read."""
        return {"now_ms": self.clock_ms} if self.both.naive.clock == "wall" else {}

    def at(self) -> dict[str, int]:
        """When something is sent, by the server's clock."""
        if self.both.naive.clock == "wall" or self.server_ahead_ms is None:
            return self.now()
        return {"now_ms": self.clock_ms + self.server_ahead_ms}

    # Events

    def row(self, data: st.DataObject, kind: str) -> Row:
        time = self.clock_ms + data.draw(shifts)
        if kind == "b":
            return Row(time, {"k": data.draw(keys), "z": data.draw(numbers)})
        fields = {
            "k": data.draw(keys),
            "q": data.draw(st.sampled_from(["q", "r", None])),
            "x": data.draw(numbers),
            "y": data.draw(positives),
            "s": data.draw(st.sampled_from(["u", "w", "", None])),
        }
        if self.ids:
            again = data.draw(st.integers(0, 5)) == 0
            recent = [None, *range(max(0, self.next_id - 6), self.next_id)]
            fields["id"] = data.draw(st.sampled_from(recent)) if again else self.fresh_id()
        return Row(time, fields)

    def fresh_id(self) -> int:
        self.next_id += 1
        return self.next_id

    @rule(data=st.data(), kind=st.sampled_from("aaab"), n=st.integers(1, 6))
    def ingest(self, data: st.DataObject, kind: str, n: int) -> None:
        self.both.submit(kind, [self.row(data, kind) for _ in range(n)], **self.at())

    @rule(data=st.data(), kind=st.sampled_from("aaab"), n=st.integers(1, 3))
    def observe(self, data: st.DataObject, kind: str, n: int) -> None:
        rows = [self.row(data, kind) for _ in range(n)]
        answers, _ = self.both.submit(kind, rows, "everything", **self.at())
        for answer in answers:
            event(f"observed with outcome {answer.outcome}")

    @rule(data=st.data(), kind=st.sampled_from("ab"))
    def peek_then_observe(self, data: st.DataObject, kind: str) -> None:
        row = self.row(data, kind)
        peeked = self.both.peek(kind, row, "everything", **self.at())
        _, observed = self.both.submit(kind, [row], "everything", **self.at())
        assert observed is not None
        assert peeked.bits() == observed.bits()

    @rule(
        key=st.sampled_from("ab"),
        n=st.integers(10, 60),
        gap_ms=st.sampled_from([0, 1, 40, 300]),
        x=st.sampled_from([-3, 0.5, 2]),
    )
    def burst(self, key: str, n: int, gap_ms: int, x: float) -> None:
        """One key grows hot: what makes logs merge."""
        rows = [
            Row(
                self.clock_ms + i * gap_ms,
                {"k": key, "q": "q", "x": x * (i % 5), "y": i % 7, "s": "u", "id": self.fresh_id()},
            )
            for i in range(n)
        ]
        self.clock_ms += n * gap_ms
        self.both.submit("a", rows, **self.at())

    @rule(data=st.data(), broken=malformed)
    def malformed_among_others(self, data: st.DataObject, broken: dict[str, Any]) -> None:
        good, bad = self.row(data, "a"), self.row(data, "a")
        fields = {**bad.fields, **broken}
        time = fields.pop("ts", bad.time)
        self.both.submit("a", [Row(time, fields), good], **self.at())

    @rule(data=st.data(), skip=st.sampled_from([1, 1, 1, 2, 500, 1100]), epoch=st.sampled_from([1, 1, 1, 2]))
    def ingest_in_sequence(self, data: st.DataObject, skip: int, epoch: int) -> None:
        self.next_sequence += skip
        rows = [self.row(data, "a") for _ in range(data.draw(st.integers(1, 3)))]
        options = {"producer": b"p", "epoch": epoch, "sequence": self.next_sequence}
        self.both.submit("a", rows, **options, **self.at())
        self.sent.append((rows, options))

    @precondition(lambda self: getattr(self, "sent", []))
    @rule(data=st.data(), same=st.sampled_from([True, True, False]))
    def retry(self, data: st.DataObject, same: bool) -> None:
        rows, options = data.draw(st.sampled_from(self.sent))
        rows = rows if same else [replace(row, time=(row.time or 0) + 1) for row in rows]
        self.both.submit("a", rows, **options, **self.at())

    @precondition(lambda self: getattr(self, "sent", []))
    @rule(change=st.sampled_from(["drop", "reset", "reset back"]), back=st.integers(0, 1500))
    def change_producer(self, change: str, back: int) -> None:
        epoch = max(options["epoch"] for _, options in self.sent)
        if change == "drop":
            self.both.change_producer(b"p")
        elif change == "reset":
            self.both.change_producer(b"p", epoch, self.next_sequence)
        else:
            self.both.change_producer(b"p", 1, max(0, self.next_sequence - back))

    @precondition(lambda self: self.both.naive.clock == "wall")
    @rule(data=st.data(), back_ms=st.integers(1, 40_000))
    def clock_turns_back(self, data: st.DataObject, back_ms: int) -> None:
        current = Row(self.clock_ms, {"k": "a", "id": self.fresh_id()})
        self.both.submit("a", [current], now_ms=self.clock_ms)
        self.both.submit("a", [self.row(data, "a")], "everything", now_ms=self.clock_ms - back_ms)

    # Everything else

    def key_set(self, **parts: object) -> dict[str, object]:
        """Those of `parts` that some view has: asking for others is a mistake, not a question."""
        known = {part for view in self.shown.values() for part in view.key}
        return {part: value for part, value in parts.items() if part in known}

    @rule(name=st.sampled_from(["late", "some", "loud", "all", "pairs", "places", "other"]))
    def add_or_remove_view(self, name: str) -> None:
        if name in self.shown:
            self.shown = {n: view for n, view in self.shown.items() if n != name}
        else:
            self.shown = {**self.shown, name: self.views[name]}
        self.both.apply(schema_of(self.shown, ids=self.ids, stated=self.stated))

    @rule(windows=st.sampled_from(["5s", "5s 50s", "5s 20s 80s", "20s"]))
    def change_windows(self, windows: str) -> None:
        kept = tuple(f for f in self.views["plain"].features if f.aggregate != "count" or not f.window_ms)
        view = replace(self.views["plain"], features=features("count", windows) + kept)
        self.shown = {**self.shown, "plain": view}
        self.both.apply(schema_of(self.shown, ids=self.ids, stated=self.stated))

    @rule(parts=st.sampled_from([{"k": "a"}, {"k": "7"}, {"k": "b", "q": "q"}, {"q": "q"}, {}]))
    def forget(self, parts: dict[str, str]) -> None:
        entities = {tuple(sorted(view.key)) for view in self.shown.values()}
        if tuple(sorted(parts)) in entities:
            self.both.forget(parts)

    @rule(threads=st.sampled_from([1, 3]))
    def restart(self, threads: int) -> None:
        self.both.restart(threads=threads)

    @rule()
    def sweep(self) -> None:
        self.both.engine.state.sweep()

    @rule(
        back_ms=st.one_of(
            st.integers(-25_000, 90_000), st.sampled_from([0, 5_000, 20_000, 30_000, -10_000, -10_001])
        ),
        key=st.sampled_from([*KEYS, "never", None]),
    )
    def get_as_of(self, back_ms: int, key: object) -> None:
        self.both.read("everything", self.key_set(k=key, q="q"), as_of=self.clock_ms - back_ms, **self.now())

    @invariant()
    def everything_readable_agrees(self) -> None:
        if not hasattr(self, "both"):
            return
        for parts in ({"k": "a", "q": "q"}, {"k": "7", "q": "r"}, {"k": "b"}):
            self.both.read("everything", self.key_set(**parts), **self.now())
        self.both.read("everything", self.key_set(k="a", q="q"), as_of=self.clock_ms, **self.now())
        self.derived_alone_are_the_same()

    def derived_alone_are_the_same(self) -> None:
        """A service without the operands of what it lists answers what one with them answers."""
        derived = self.both.naive.schema.services.get("derived")
        if derived is None:
            return
        keys = self.key_set(k="a", q="q")
        _, alone = self.both.read("derived", keys, as_of=self.clock_ms, **self.now())
        _, among = self.both.read("everything", keys, as_of=self.clock_ms, **self.now())
        assert alone.names == derived
        answered = dict(among.got(0))
        for name, got in alone.got(0):
            assert repr(got) == repr(answered[name])
            event(f"derived value with status {got.status}, {'exact' if got.lower == got.upper else 'not'}")

    def is_same_state(self, other: Engine) -> bool:
        return bool(other.state.digest() == self.both.engine.state.digest())

    def teardown(self) -> None:
        if not hasattr(self, "both"):
            return
        whole, other = self.both.engine, self.both.replayed([1, 3, 2, 50], threads=3)
        assert self.is_same_state(other), "other batches or threads, another state"
        sharded = self.both.replayed([1_000], threads=2, n_shards=1)
        for key in ("a", "7"):
            keys = self.key_set(k=[key], q=["q"])
            # A sketch is its shard's: with other shards, others share it.
            for service, engines in (("everything", (whole, other)), ("rows", (whole, other, sharded))):
                answers = [
                    engine.read(service, keys, as_of=self.clock_ms, **self.now()) for engine in engines
                ]
                assert len({answer.bits() for answer in answers}) == 1, service


# Explaining a failure runs long histories a hundred times more; the steps themselves say enough.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

TestTwoStores = TwoStores.TestCase
TestTwoStores.settings = settings(max_examples=scaled(500), stateful_step_count=30, phases=PHASES)
