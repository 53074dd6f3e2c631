"""The stores of tests/golden/store_producers_v2, _v3 and _v4: producers of those versions, and heads of
version 2, 2 and 3.

python -m storage.store_producers DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.engine import Engine

from .store_v1 import SCHEMA, START_MS

MADE_UP = b"client-0123456789abcdef"
#: Of each producer its epoch and the sequences that it sent: in few places, in more, out of order.
SENT = {b"golden": (3, [1, 2, 3]), b"wide": (1, [1, 40, 7, 900]), MADE_UP: (1, [5])}
#: In version 3 one more: its epoch and the sequence that it was reset to, and one that it sent after that.
RESET, RESET_TO, SENT_AFTER = "was fenced off", (2, 41), 43
#: In version 4 they are of two checkpoints: `golden` sent its last after the first, which has one more, that
#: was dropped then.
DROPPED = "was dropped"


def send(to: State | Engine, name: bytes, epoch: int, sequence: int) -> bool:
    """Whether it was new."""
    state = to if isinstance(to, State) else to.state
    data = {
        "at": [START_MS + sequence],
        "play_id": [f"{name!r}{sequence}"],
        "account": ["anna"],
        "seconds": [1.0],
    }
    event, position = state.plan.events[0], state.position
    batch = EventBatch(event, 0, *event_columns(event, data))
    to.observe(batch, producer=name, epoch=epoch, sequence=sequence)
    return state.position > position


def make(directory: Path) -> None:
    with Engine.open(directory, schema=SCHEMA, clock="event", n_shards=2, segment_bytes=4096) as engine:
        send(engine, DROPPED.encode(), 1, 1)
        for name, (epoch, sequences) in SENT.items():
            for sequence in sequences[:2]:
                send(engine, name, epoch, sequence)
        engine.checkpoint()
        engine.drop_producer(DROPPED)
        for name, (epoch, sequences) in SENT.items():
            for sequence in sequences[2:]:
                send(engine, name, epoch, sequence)
        send(engine, RESET.encode(), 9, 1 << 40)
        engine.reset_producer(RESET, *RESET_TO)
        send(engine, RESET.encode(), RESET_TO[0], SENT_AFTER)
        engine.checkpoint()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
