"""The store of tests/golden/store_fed_v1: lifetimes in rows that were last fed long after their newest event.

python -m storage.store_fed DIRECTORY     makes one like it (with an id, a secret and salts of its own)
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
  play:
    time: {field: at, unit: ms}
    fields: {account: key, seconds: number}
    lateness: 1m
views:
  plays: {event: play, key: account, windows: [10s, lifetime], features: [count], lifetime_idle: 1d}
  lengths: {event: play, key: account, windows: [lifetime], features: [stddev(seconds)], lifetime_idle: 1d}
services:
  all: [plays.count_lifetime, lengths.stddev_seconds_lifetime]
"""
START_MS, HOUR_MS = 1_700_000_000_000, 3_600_000
# Who plays at which hour, for how many seconds; anna's second comes ten hours late.
PLAYS = [(0, "anna", 10.0), (20, "bert", 1.0), (10, "anna", 30.0)]
FED_MS = START_MS + 20 * HOUR_MS


def send(engine: Engine, at_ms: int, account: str, seconds: float) -> EventBatch:
    kind = engine.state.plan.events[0]
    columns = event_columns(kind, {"at": [at_ms], "account": [account], "seconds": [seconds]})
    batch = EventBatch(kind, 0, *columns)
    engine.observe(batch)
    return batch


def make(directory: Path) -> None:
    with Engine.open(
        directory, schema=SCHEMA, clock="event", history="none", n_shards=2, segment_bytes=4096
    ) as engine:
        for hour, account, seconds in PLAYS:
            send(engine, START_MS + hour * HOUR_MS, account, seconds)
        engine.checkpoint()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
