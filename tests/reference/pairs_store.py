"""A store with a schema of schema_pairs, fed and read by whatever of it there is by now.

Imported only by tests that compare; schema_pairs imports nothing from featurestore.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

START_MS = 1_700_000_000_000  # of the newest event of each type


def send(engine: Engine, rng: random.Random, n: int, names: Iterable[str] | None = None) -> None:
    """n events of each type, or of each that is named, in that order."""
    places = {event.name: index for index, event in enumerate(engine.state.plan.events)}
    for name in places if names is None else names:
        index = places[name]
        event = engine.state.plan.events[index]
        columns = {
            event.time.field: [START_MS, *(START_MS - rng.randrange(600_000) for _ in range(1, n))],
            "account": [rng.choice("ab") for _ in range(n)],
            "ip": [rng.choice("xyz") for _ in range(n)],
            "city": ["c"] * n,
            "note": [str(rng.random()) for _ in range(n)],
            "amount": [float(rng.randrange(10)) for _ in range(n)],
            "score": [float(rng.randrange(5)) for _ in range(n)],
        }
        engine.observe(EventBatch(event, index, *event_columns(event, columns)), producer=b"", sequence=0)


def read(engine: Engine, number: int) -> tuple[Any, Any]:
    """Values and statuses of a vector, of one key as of the newest event."""
    known = {part for entity in engine.state.plan.entities for part in entity.parts}
    keys = {part: text for part, text in {"account": "a", "ip": "x"}.items() if part in known}
    parts = {part: text_column([text])[0] for part, text in keys.items()}
    vectors = engine.read(number, parts, 1, as_of=np.array([START_MS], np.int64))
    return vectors.values[0], vectors.statuses[0]
