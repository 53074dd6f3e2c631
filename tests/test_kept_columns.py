"""What no feature needs any more of a live log is counted on: what comes back has missed nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

SCHEMA = """\
version: 1
name: kept
events:
  play: {time: {field: at, unit: ms}, fields: {account: key, ms: number, free: bool}}
views:
  plays:
    event: play
    key: account
    windows: [10m, 1h, lifetime]
    exact_events: 8
    features:
      - count
      - sum(ms)
      - {aggregate: stddev(ms), windows: [1h]}
      - {name: large, aggregate: count, where: ms > 50 and free, windows: [1h]}
      - {name: last_free, aggregate: last(ms), where: free, windows: [1h]}
services:
  all: [plays.*]
"""
FEWER = SCHEMA.replace(
    "fields: {account: key, ms: number, free: bool}", "fields: {free: bool, ms: number, account: key}"
)
FEWER = FEWER[: FEWER.index("      - sum(ms)")] + "      - mean(ms)\n" + FEWER[FEWER.index("services:") :]
FEWER = FEWER.replace("windows: [10m, 1h, lifetime]", "windows: [10m, 1h]")
START_MS = 1_700_000_000_000


def send(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    event = engine.state.plan.events[0]
    columns = {
        "at": [START_MS + seed * 400_000 + rng.randrange(300_000) for _ in range(40)],
        "account": [rng.choice("ab") for _ in range(40)],
        "ms": [rng.randrange(100) / 7 * 8 for _ in range(40)],
        "free": [rng.random() < 0.5 for _ in range(40)],
    }
    engine.observe(EventBatch(event, 0, *event_columns(event, columns)))


def read(engine: Engine) -> list[Any]:
    vectors = engine.read(0, {"account": text_column(["a", "b", "c"])[0]}, 3, bounds=True)
    return [vectors.values, vectors.statuses, vectors.coverage, vectors.lower, vectors.upper]


def test_a_feature_that_was_gone_for_a_while_says_what_a_twin_says(tmp_path: Path) -> None:
    new = {"schema": SCHEMA, "clock": "merged", "history": "none", "n_shards": 1}
    engine = Engine.open(tmp_path / "store", **new)
    try:
        with Engine.open(tmp_path / "twin", **new) as twin:
            for seed in range(6):
                send(engine, seed)
                send(twin, seed)
                if seed == 1:
                    engine.apply_schema(FEWER, allow=["drop", "order"])
                    assert len(engine.state.plan.features) == 4
                if seed in (2, 3):  # by a checkpoint, and by the journal alone
                    engine.close(checkpoint=seed == 2)
                    engine = Engine.open(tmp_path / "store")
                if seed == 4:
                    engine.apply_schema(SCHEMA, allow=["drop", "order"])
            for found, wanted in zip(read(engine), read(twin), strict=True):
                np.testing.assert_array_equal(found, wanted)
            assert engine.state.plan.views == twin.state.plan.views
    finally:
        engine.close()
