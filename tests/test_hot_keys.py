"""One hot key, whose log merges all the time, with late events everywhere: every bound against the truth.

The state machine meets few merged logs, and fewer late events that fall into one. Here each of a thousand
steps may be one, and every window is compared with the naive store after each of them.
"""

from __future__ import annotations

import random

import pytest
from reference.both import Both
from reference.naive import EventType, Row, Schema, View
from reference.written import Filter, features

UP = Filter("x > 0", lambda f: None if f["x"] is None else f["x"] > 0)  # type: ignore[operator]
FEATURES = (
    features("count", "2s 20s 100s")
    + features("sum", "20s 100s", value="x", name="up_x", where=UP)
    + features("interval_mean", "2s 20s 100s")
    + features("interval_cv", "2s 20s 100s")
    + features("interval_mean", "20s", name="up_gap", where=UP)
    + features("interval_cv", "20s 100s", name="up_cv", where=UP)
    + features("distinct", "2s 100s", value="q")
    + features("top", "2s 20s 100s", value="q", k=3)
    + features("top", "100s", value="x", name="up_top", where=UP, k=2)
    + features("hour_entropy", "2s 100s")
    + features("decayed_sum", "10s", value="x")
    + features("decayed_mean", "3s", value="x", name="up_mean", where=UP)
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread_ms", [0, 200, 5_000])
def test_bounds_hold_truth(seed: int, spread_ms: int) -> None:
    limits = {"exact_events": 4 + 3 * seed, "max_error": 0.2, "max_entries": 24}
    view = View("e", {"k": "k"}, FEATURES, **limits, top_counters=8, top_error=0.2)  # type: ignore[arg-type]
    kind = EventType({"k": "key", "q": "key", "x": "number"}, lateness_ms=30_000)
    store = Both(Schema({"e": kind}, {"v": view}, {"s": [f"v.{f.name}" for f in FEATURES]}))
    draw = random.Random(100 * seed + spread_ms)
    now = 3_500_000  # the hour of day changes on the way
    for step in range(100):
        now += draw.choice([0, 0, 1, 10, 300, 300, draw.randrange(4_000)])
        rows = [
            Row(
                now - (draw.randrange(spread_ms + 1) if draw.random() < 0.5 else 0),
                {
                    "k": "a",
                    "q": f"q{draw.randrange(1 + step // 8)}",
                    "x": draw.choice([None, -3.0, 1.0, 2.5, 1e3]),
                },
            )
            for _ in range(draw.randrange(1, 4))
        ]
        store.submit("e", rows, "s" if draw.random() < 0.3 else None)
        store.read("s", {"k": "a"})
        store.read("s", {"k": "a"}, as_of=now - draw.randrange(6_000))
        store.read("s", {"k": "a"}, as_of=now + draw.randrange(6_000))
