"""One wrong clock: an event that is dated years ahead, and a server's wall clock that is set ahead, must
silence nobody else.

The server's clock is moved by a preloaded library (shifted.py), in a process of its own that takes one
command a line and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shifted import Shifted

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.errors import StorageError
from featurestore.outcome import Outcome

SCHEMA = """
version: 1
name: clocks
events:
  play: {time: {field: ts, unit: ms}, lateness: 1h, fields: {ip: key}}
  skip: {time: {field: ts, unit: ms}, lateness: 1h, fields: {ip: key}}
views:
  ip: {event: play, key: ip, windows: [1h, 1d], features: [count]}
  skips: {event: skip, key: ip, windows: [1h], features: [count]}
services: {all: [ip.*, skips.*]}
"""
DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS


def sent(engine: Engine, times: list[int], event: int = 0) -> list[int]:
    declared = engine.state.plan.events[event]
    batch = EventBatch(declared, event, *event_columns(declared, {"ts": times, "ip": ["a"] * len(times)}))
    engine.observe(batch)
    return [int(outcome) for outcome in batch.outcomes]


@pytest.mark.parametrize("clock", ["wall", "event", "merged"])
def test_an_event_years_ahead_is_refused_and_those_after_it_count(tmp_path: Path, clock: str) -> None:
    now_ms = time.time_ns() // 1_000_000
    with Engine.open(tmp_path / "store", schema=SCHEMA, clock=clock, durability="process") as engine:
        assert sent(engine, [now_ms - 1000]) == [Outcome.ACCEPTED]
        assert sent(engine, [now_ms + 5 * YEAR_MS, now_ms, now_ms + 60_000, now_ms - 10]) == [
            Outcome.REFUSED_FUTURE,
            Outcome.ACCEPTED,
            Outcome.REFUSED_FUTURE,
            Outcome.ACCEPTED,
        ]
        assert sent(engine, [now_ms - 500], event=1) == [Outcome.ACCEPTED], "the other type's clock"
        before = engine.state.digest()
    with Engine.open(tmp_path / "store", durability="process") as engine:
        assert engine.state.digest() == before
        assert sent(engine, [now_ms - 20]) == [Outcome.ACCEPTED], "after a restart"


PROGRAM = """
import json, sys, time
import numpy as np
from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.errors import FeatureStoreError

directory, schema, clock = sys.argv[1:]
engine = Engine.open(directory, schema=schema, clock=clock, history="none", durability="process")
real_ms = time.time_ns() // 1_000_000        # the shift is 0 at first

def observe(ahead_ms):
    declared = engine.state.plan.events[0]
    data = {"ts": [time.time_ns() // 1_000_000 + ahead_ms], "ip": ["a"]}
    batch = EventBatch(declared, 0, *event_columns(declared, data))
    try:
        engine.observe(batch)
    except FeatureStoreError as error:
        return [type(error).__name__, error.applied, str(error)]
    return int(batch.outcomes[0])

def read():
    vectors = engine.read(0, {"ip": text_column(["a"])[0]}, 1, bounds=True)
    return [float(vectors.values[0][0]), int(vectors.statuses[0][0])]

leaps = []
answers = {
    "observe": lambda ms: observe(ms),
    "read": lambda _: read(),
    "leap": lambda _: engine.leap_ms,
    "accept": lambda _: engine.accept_clock(),
    "now": lambda _: engine.stats()["now_ms"] - real_ms,
    "watch": lambda _: engine.start_upkeep(on_leap=lambda ms: leaps.append(ms)),
    "leaps": lambda _: leaps,
    "checkpoint": lambda _: engine.checkpoint()[0],
}
for line in sys.stdin:
    word, number = line.split()
    print(json.dumps(answers[word](int(number))), flush=True)
engine.close()
"""


class Store:
    """A store in a process with a clock of its own."""

    def __init__(self, directory: Path, clock: str, *, ahead_ms: int = 0) -> None:
        self.clock = Shifted(directory)
        self.clock.set_ms(ahead_ms)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory / "store"), SCHEMA, clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.clock.environment,
        )

    def ask(self, word: str, number: int = 0) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word} {number}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> int:
        self._process.communicate()
        return self._process.returncode


@pytest.fixture
def wall(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, "wall")
    yield store
    assert store.close() == 0


def test_a_wall_clock_that_leaps_stops_writes_and_expires_nothing(wall: Store) -> None:
    assert wall.ask("observe") == Outcome.ACCEPTED
    wall.clock.set_ms(50_000)
    assert wall.ask("observe") == Outcome.ACCEPTED, "a step of less than a minute is followed"
    assert wall.ask("leap") == 0
    wall.clock.set_ms(400 * DAY_MS)
    name, applied, words = wall.ask("observe")
    assert (name, applied) == ("UnavailableError", False)
    assert "featurestore clock accept" in words
    assert abs(wall.ask("leap") - 400 * DAY_MS) < 120_000
    assert wall.ask("read") == [2.0, 1], "now goes on with time, and nothing has expired"
    assert 0 <= wall.ask("now") < 600_000
    wall.ask("checkpoint")
    assert wall.ask("read") == [2.0, 1]
    wall.clock.set_ms(0)
    assert wall.ask("leap") == 0
    assert wall.ask("observe") == Outcome.ACCEPTED, "as soon as the clock is right again"
    assert wall.ask("read") == [3.0, 1]


def test_a_leap_that_is_right_is_accepted_by_an_operator(wall: Store) -> None:
    assert wall.ask("observe") == Outcome.ACCEPTED
    assert wall.ask("accept") == 0
    wall.clock.set_ms(DAY_MS)
    assert wall.ask("observe")[0] == "UnavailableError"
    assert abs(wall.ask("accept") - DAY_MS) < 120_000
    assert wall.ask("leap") == 0
    assert wall.ask("observe") == Outcome.ACCEPTED
    assert wall.ask("read") == [1.0, 1], "the event of a day ago is out of the hour"
    wall.clock.set_ms(DAY_MS + 30_000)
    assert wall.ask("observe") == Outcome.ACCEPTED, "a minute more, from there on"


def test_upkeep_tells_when_it_leaps_and_when_it_is_right_again(wall: Store) -> None:
    wall.ask("watch")
    wall.clock.set_ms(400 * DAY_MS)
    while len(leaps := wall.ask("leaps")) < 1:
        pass
    wall.clock.set_ms(0)
    while len(leaps := wall.ask("leaps")) < 2:
        pass
    assert leaps[0] > 399 * DAY_MS
    assert leaps[1] == 0


def test_an_event_clock_does_not_follow_a_server_that_leaps(tmp_path: Path) -> None:
    """Nor does it refuse for good what may be the present."""
    store = Store(tmp_path, "event")
    assert store.ask("observe") == Outcome.ACCEPTED
    assert store.ask("observe", 400 * DAY_MS) == Outcome.REFUSED_FUTURE
    store.clock.set_ms(400 * DAY_MS)
    name, applied, _ = store.ask("observe")
    assert (name, applied) == ("UnavailableError", False)
    assert store.ask("observe", -400 * DAY_MS) == Outcome.ACCEPTED
    store.ask("accept")
    assert store.ask("observe") == Outcome.ACCEPTED
    assert store.close() == 0


@pytest.mark.parametrize("ahead_ms", [20 * 60_000, 400 * DAY_MS])
def test_a_store_that_a_wrong_clock_pulled_ahead_is_set_back(tmp_path: Path, ahead_ms: int) -> None:
    """It was wrong from the start, so that nobody could tell."""
    wrong = Store(tmp_path, "wall", ahead_ms=ahead_ms)
    assert wrong.ask("observe") == Outcome.ACCEPTED
    assert wrong.close() == 0
    store = tmp_path / "store"
    with pytest.raises(StorageError, match="featurestore serve --clock-back"):
        Engine.open(store)
    with Engine.open(store, clock_back=True, durability="process") as engine:
        now_ms = time.time_ns() // 1_000_000
        assert sent(engine, [now_ms, now_ms - 3_000_000, now_ms + 5 * YEAR_MS]) == [
            Outcome.ACCEPTED,
            Outcome.ACCEPTED,
            Outcome.REFUSED_FUTURE,
        ], "no honest event is late"
        vectors = engine.read(0, {"ip": text_column(["a"])[0]}, 1)
        assert {int(status) for status in vectors.statuses[0]} == {3}, "WARMING"
    with Engine.open(store) as engine:
        assert engine.clock == "wall"
