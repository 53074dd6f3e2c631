"""The store of tests/golden/store_v1: how it was made, and what it must say for ever.

python -m storage.store_v1 DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
    ids: {id: play_id, dedupe: 2h}
    fields: {play_id: string, account: key, seconds: number}
views:
  account:
    event: play
    key: account
    exact_events: 4
    features:
      - {aggregate: count, windows: [10m, lifetime]}
      - {aggregate: sum(seconds), windows: [10m]}
services:
  plays: [account.*]
"""
START_MS = 1_700_000_000_000
ACCOUNTS = ["anna", "bert", "carl"]

#: Per account: lifetime count, count and sum of the last 10 minutes, by the service's order of names.
EXPECTED = {
    "account.count_10m": [7.0, 6.0, 0.0],
    "account.count_lifetime": [7.0, 6.0, 0.0],
    "account.sum_seconds_10m": [26.0, 15.0, 0.0],
}


def batch(engine: Engine, data: Mapping[str, Sequence[object]]) -> EventBatch:
    event = engine.state.plan.events[0]
    return EventBatch(event, 0, *event_columns(event, data))


def send(engine: Engine, sequence: int, accounts: Sequence[str]) -> None:
    n = len(accounts)
    data = {
        "at": [START_MS + 1000 * (10 * sequence + i) for i in range(n)],
        "play_id": [f"{sequence}-{i}" for i in range(n)],
        "account": list(accounts),
        "seconds": [float(i) for i in range(n)],
    }
    engine.observe(batch(engine, data), producer=b"golden", epoch=1, sequence=sequence)


def make(directory: Path) -> None:
    with Engine.open(directory, schema=SCHEMA, clock="event", n_shards=2, segment_bytes=4096) as engine:
        send(engine, 1, ["anna", "carl"] + ["anna"] * 5)  # more than exact_events: merged
        engine.forget({"account": "carl"})
        engine.checkpoint()
        send(engine, 2, ["bert"] * 6 + ["anna"])  # in the journal only


def answers(engine: Engine) -> dict[str, list[float]]:
    plan = engine.state.plan
    vectors = engine.read(0, {"account": text_column(ACCOUNTS)[0]}, len(ACCOUNTS))
    names = [plan.features[index].name for index in plan.services[0].features]
    return {name: [float(row[i]) for row in vectors.values] for i, name in enumerate(names)}


if __name__ == "__main__":
    make(Path(sys.argv[1]))
