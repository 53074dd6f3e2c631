"""The store of tests/golden/store_ids_v3: a head of version 3, and event ids in records of their own.

python -m storage.store_ids DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.outcome import Outcome

from .store_v1 import SCHEMA, START_MS

#: When so many ids came: those of the first time have expired by the last, after 2 h.
CAME = ((START_MS, 5), (START_MS + 3_600_000, 200), (START_MS + 7_200_001, 3))


def outcomes_of(engine: Engine, at_ms: int, ids: list[str]) -> list[Outcome]:
    n = len(ids)
    data = {"at": [at_ms] * n, "play_id": ids, "account": ["anna"] * n, "seconds": [1.0] * n}
    event = engine.state.plan.events[0]
    batch = EventBatch(event, 0, *event_columns(event, data))
    engine.observe(batch)
    return [Outcome(outcome) for outcome in batch.outcomes]


def make(directory: Path) -> None:
    with Engine.open(directory, schema=SCHEMA, clock="event", n_shards=2, segment_bytes=4096) as engine:
        for at_ms, n in CAME:
            outcomes_of(engine, at_ms, [f"{at_ms}-{i}" for i in range(n)])
            engine.checkpoint()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
