"""The store of tests/golden/store_clock_v1: one whose events moved its clock, then the server did, and whose
clock was set back.

python -m storage.store_clock DIRECTORY     makes one like it (with an id, a secret and salts of its own)

The server's clock says another time whenever this runs: so the frames that change the store's are put into
the journal by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.plan import Plan
from featurestore.schema.evolution import as_of_wall, set_back
from featurestore.storage.frame import clock_body
from featurestore.storage.journal import CLOCK

SCHEMA = """\
version: 1
name: golden
events:
  play:
    time: {field: at, unit: ms}
    fields: {play_id: key, account: key, track: key}
    ids: {id: play_id, dedupe: 1d}
    lateness: 10s
views:
  accounts: {event: play, key: account, windows: [1m, lifetime], features: [count]}
  spread: {event: play, key: account, windows: [1m], features: [distinct(track)]}
services:
  all: [accounts.count_1m, accounts.count_lifetime, spread.*]
"""
START_MS = 1_700_000_000_000
WALL_MS = START_MS + 90_000  # what the server's clock says when the store is given it
BACK_MS = START_MS + 60_000  # and when it is set back


def send(engine: Engine, s: int, accounts: list[str], *, prefix: str = "") -> list[int]:
    """Their outcomes, of events with ids and times of their own from s seconds after the start on."""
    kind = engine.state.plan.events[0]
    n = len(accounts)
    data = {
        "at": [START_MS + 1000 * (s + i) for i in range(n)],
        "play_id": [f"{prefix}{s + i}" for i in range(n)],
        "account": accounts,
        "track": ["t1"] * n,
    }
    batch = EventBatch(kind, 0, *event_columns(kind, data))
    engine.observe(batch)
    return [int(outcome) for outcome in batch.outcomes]


def put(engine: Engine, plan: Plan, now_ms: int) -> None:
    """Behind it nothing can be written until the store is opened again."""
    body = clock_body("wall", now_ms, plan.to_json().encode())
    assert engine.journal.append(CLOCK, body, n_positions=1, now_ms=now_ms, schema_version=plan.version)
    engine.journal.sync()


def put_back(engine: Engine, now_ms: int) -> None:
    now = engine.state.now_ms
    assert now is not None
    put(engine, set_back(engine.state.plan, now_ms, from_ms=now, ahead_ms=10_000), now_ms)


def make(directory: Path) -> None:
    with Engine.open(
        directory, schema=SCHEMA, clock="event", history="none", n_shards=1, segment_bytes=4096
    ) as engine:
        send(engine, 0, ["anna", "bert", "anna"])
        put(engine, as_of_wall(engine.state.plan), WALL_MS)
    with Engine.open(directory, segment_bytes=4096) as engine:
        engine.checkpoint()
        put_back(engine, BACK_MS)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
