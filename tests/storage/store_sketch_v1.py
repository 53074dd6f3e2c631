"""The store of tests/golden/store_sketch_v1, with views kept in sketches: how it was made, what it must say.

python -m storage.store_sketch_v1 DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

SCHEMA = """\
version: 1
name: golden
events:
  play:
    time: {field: at, unit: ms}
    lateness: 1h
    fields: {ip: key, track: key, seconds: number}
views:
  pair:
    event: play
    key: [ip, track]
    store: sketch
    epsilon: 0.1
    delta: 0.1
    windows: [1m, 1h]
    features: [count, sum(seconds)]
services:
  pairs: [pair.*]
"""
START_MS = 1_700_000_000_000
PAIRS = [("1.2.3.4", "7"), ("1.2.3.4", "8"), ("5.6.7.8", "7")]

#: Values, which are upper bounds, and lower bounds, of each pair.
COUNTS = [[7.0, 6.0, 0.0], [6.320429542885229, 5.417511036758768, 0.0]]
SUMS = [[10.5, 9.0, 0.0], [9.480644314327844, 8.126266555138152, 0.0]]
EXPECTED = {
    "pair.count_1m": COUNTS,
    "pair.count_1h": COUNTS,
    "pair.sum_seconds_1m": SUMS,
    "pair.sum_seconds_1h": SUMS,
}


def send(engine: Engine, first: int, n: int) -> None:
    pairs = [PAIRS[i % 2] for i in range(first, first + n)]
    data = {
        "at": [START_MS + 1000 * i for i in range(first, first + n)],
        "ip": [ip for ip, _ in pairs],
        "track": [track for _, track in pairs],
        "seconds": [i / 4 for i in range(first, first + n)],
    }
    event = engine.state.plan.events[0]
    engine.observe(EventBatch(event, 0, *event_columns(event, data)))


def make(directory: Path) -> None:
    with Engine.open(directory, schema=SCHEMA, clock="event", n_shards=2, segment_bytes=4096) as engine:
        send(engine, 0, 9)
        engine.checkpoint()
        send(engine, 9, 4)  # in the journal only


def answers(engine: Engine) -> dict[str, list[list[float]]]:
    plan = engine.state.plan
    keys = {"ip": text_column([ip for ip, _ in PAIRS])[0], "track": text_column([t for _, t in PAIRS])[0]}
    vectors = engine.read(0, keys, len(PAIRS), bounds=True)
    assert vectors.lower is not None
    names = [plan.features[index].name for index in plan.services[0].features]
    return {
        name: [[float(each[i]) for each in row] for row in (vectors.values, vectors.lower)]
        for i, name in enumerate(names)
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]))
