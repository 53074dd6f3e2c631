"""The store of tests/golden/store_shed_v1: keys that found no room, in the journal and in the rows.

python -m storage.store_shed DIRECTORY     makes one like it (with an id, a secret and salts of its own)

Memory decides what is shed, and 16 MiB of rows are no golden file: so the frames that say it are put into the
journal by hand, with the columns of a batch that was written before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.storage.frame import batch_body
from featurestore.storage.journal import SHED

SCHEMA = """\
version: 1
name: golden
events:
  play:
    time: {field: at, unit: ms}
    fields: {account: key, track: key}
    lateness: 10s
views:
  accounts: {event: play, key: account, windows: [1m, lifetime], features: [count]}
  tracks: {event: play, key: track, windows: [1m], features: [count]}
services:
  all: [accounts.count_1m, accounts.count_lifetime, tracks.count_1m]
"""
START_MS = 1_700_000_000_000
# (s after the start, account, track), and which key found no room: bit 0 the account, bit 1 the track.
FIRST = [(0, "anna", "t1")]
SHED_1 = [((1, "bert", "t1"), 1), ((2, "carl", "t2"), 3), ((2, "anna", "t1"), 0)]
SECOND = [(3, "bert", "t2")]  # there is room again: both rows are made after events were shed
SHED_2 = [((9, "dora", "t1"), 1)]


def batch(engine: Engine, plays: list[tuple[int, str, str]]) -> EventBatch:
    kind = engine.state.plan.events[0]
    at, accounts, tracks = zip(*plays, strict=True)
    data = {"at": [START_MS + 1000 * s for s in at], "account": list(accounts), "track": list(tracks)}
    return EventBatch(kind, 0, *event_columns(kind, data))


def shed(engine: Engine, plays: list[tuple[tuple[int, str, str], int]]) -> None:
    """Behind it nothing can be written until the store is opened again."""
    kind = engine.state.plan.events[0]
    at, accounts, tracks = zip(*(play for play, _ in plays), strict=True)
    times = [START_MS + 1000 * s for s in at]
    _, columns = event_columns(kind, {"at": times, "account": list(accounts), "track": list(tracks)})[:2]
    body = batch_body(
        np.zeros(len(plays), np.uint8),
        times,
        columns,
        event_id=kind.event_id,
        shed=[bits for _, bits in plays],
    )
    position = engine.journal.append(
        SHED, body, n_positions=len(plays), now_ms=START_MS, schema_version=engine.state.plan.version
    )
    engine.journal.sync()
    assert position


def make(directory: Path) -> None:
    with Engine.open(
        directory, schema=SCHEMA, clock="event", history="none", n_shards=1, segment_bytes=4096
    ) as engine:
        engine.observe(batch(engine, FIRST))
        shed(engine, SHED_1)
    with Engine.open(directory, segment_bytes=4096) as engine:
        engine.observe(batch(engine, SECOND))
        engine.checkpoint()
        shed(engine, SHED_2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
