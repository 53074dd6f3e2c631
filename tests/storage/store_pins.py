"""The store of tests/golden/store_pins_v1: a service that was two other vectors, one of them still served.

python -m storage.store_pins DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

NAMES = ["plays.count_10s", "plays.count_lifetime", "plays.sum_ms_10s", "plays.sum_ms_lifetime"]
SCHEMA = """\
version: 1
name: golden
events:
  play: {time: {field: at, unit: ms}, fields: {account: key, ms: number}}
views:
  plays: {event: play, key: account, windows: [10s, lifetime], features: [count, sum(ms)]}
derived:
  plays.twice: plays.count_10s * 2
services:
  all: [plays.count_10s, plays.count_lifetime, plays.sum_ms_10s, plays.sum_ms_lifetime]
"""
TWICE = SCHEMA.replace("plays.sum_ms_lifetime]", "plays.sum_ms_lifetime, plays.twice]")
TURNED = SCHEMA.replace(f"[{', '.join(NAMES)}]", f"[{', '.join(reversed(NAMES))}]").replace("* 2", "* 3")
START_MS = 1_700_000_000_000


def make(directory: Path) -> None:
    with Engine.open(
        directory, schema=SCHEMA, clock="merged", history="none", n_shards=2, segment_bytes=4096
    ) as engine:
        kind = engine.state.plan.events[0]
        for i in range(1, 4):
            columns = event_columns(kind, {"at": [START_MS + i], "account": ["anna"], "ms": [float(i)]})
            engine.observe(EventBatch(kind, 0, *columns))
        engine.apply_schema(TWICE)
        engine.apply_schema(TURNED, allow=["drop", "order"])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
