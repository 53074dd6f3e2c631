"""The store of tests/golden/store_since_v1: the merged clock, nothing before it, and a view that is younger
than its first event, in the journal only.

python -m storage.store_since DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

SCHEMA = """\
version: 1
name: golden
events:
  play: {time: {field: at, unit: ms}, fields: {account: key}}
  skip: {time: {field: at, unit: ms}, fields: {account: key}}
views:
  plays: {event: play, key: account, windows: [10s, lifetime], features: [count]}
  skips: {event: skip, key: account, windows: [10s, lifetime], features: [count]}
services:
  all: [plays.*, skips.*]
"""
YOUNGER = SCHEMA.replace(
    "services:", "  young: {event: play, key: account, windows: [10s], features: [count]}\nservices:"
).replace("skips.*]", "skips.*, young.*]")
START_MS = 1_700_000_000_000
NAMES = [
    "plays.count_10s",
    "plays.count_lifetime",
    "skips.count_10s",
    "skips.count_lifetime",
    "young.count_10s",
]


def send(engine: Engine, event: str, at_ms: int, account: str = "anna") -> None:
    index = [kind.name for kind in engine.state.plan.events].index(event)
    kind = engine.state.plan.events[index]
    columns = event_columns(kind, {"at": [at_ms], "account": [account]})
    engine.observe(EventBatch(kind, index, *columns))


def make(directory: Path) -> None:
    new = {"clock": "merged", "history": "none"}
    with Engine.open(directory, schema=SCHEMA, **new, n_shards=2, segment_bytes=4096) as engine:
        send(engine, "play", START_MS)
        send(engine, "skip", START_MS + 1_000)
        engine.checkpoint()
        send(engine, "play", START_MS + 2_000)
        engine.apply_schema(YOUNGER)
        send(engine, "play", START_MS + 9_000)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
