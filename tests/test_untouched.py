"""Events that no view took: accepted, and nothing counts them. How many is told, by their type."""

from __future__ import annotations

import random

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.schema import compile_schema

T0 = 1_700_000_000_000
SCHEMA = """\
version: 1
name: s
events:
  play: {time: {field: ts, unit: ms}, fields: {user: key, ip: key, kind: string, n: number}}
  ping: {time: {field: ts, unit: ms}, fields: {user: key}}
views:
  by_user: {event: play, key: user, windows: [1h], features: [count]}
  by_ip: {event: play, key: ip, where: 'kind == "a" or n > 1', windows: [1h], features: [count]}
services: {all: [by_user.*, by_ip.*]}
"""


def touched(row: dict) -> bool:
    """By hand: has a view its key, and lets its filter the event pass?"""
    by_ip = row["ip"] is not None and (row["kind"] == "a" or (row["n"] is not None and row["n"] > 1))
    return row["user"] is not None or by_ip


def test_events_that_no_view_took_are_counted(tmp_path):
    seeded = random.Random(7)
    n_untouched = 0
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock="event", history="none") as engine:
        plan = engine.state.plan
        for _ in range(20):
            rows = [
                {
                    "ts": seeded.choice([T0, T0, T0, None]),
                    "user": seeded.choice(["u", None, None]),
                    "ip": seeded.choice(["i", None]),
                    "kind": seeded.choice(["a", "b", None]),
                    "n": seeded.choice([0, 2, None]),
                }
                for _ in range(50)
            ]
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            engine.observe(EventBatch(plan.events[0], 0, *event_columns(plan.events[0], columns)))
            n_untouched += sum(row["ts"] is not None and not touched(row) for row in rows)
        ping = EventBatch(
            plan.events[1], 1, *event_columns(plan.events[1], {"ts": [T0] * 3, "user": ["u"] * 3})
        )
        engine.observe(ping)
        assert 0 < n_untouched < 1000
        assert engine.state.untouched == {"play": n_untouched, "ping": 3}  # no view is of pings
        assert engine.stats()["events_untouched"] == n_untouched + 3
        engine.apply_schema(
            SCHEMA.replace("events:", "events:\n  aa: {time: {field: ts, unit: ms}, fields: {k: key}}")
        )
        assert engine.state.untouched == {"aa": 0, "play": n_untouched, "ping": 3}


def test_the_schema_of_this_test_has_both_types_in_order():
    assert [event.name for event in compile_schema(SCHEMA).events] == ["play", "ping"]
